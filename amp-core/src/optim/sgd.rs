//! SGD with momentum (torch/optim/sgd.py) on the fused kernel.

use tch::{Kind, Tensor};

use super::{BuildOptimizer, Optimizer, Rates, groups, require, zeros_like};
use crate::{
    Result,
    ffi::{self, SgdOptions},
    nn::Parameter,
};

/// Stochastic gradient descent; defaults are torch.optim.SGD's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the running sum of gradients; 0 for none.
    pub momentum: f64,
    /// The share of a new gradient that is left out of the sum.
    pub dampening: f64,
    /// weight_decay·weight is added to the gradient.
    pub weight_decay: f64,
    /// Whether to look ahead along the momentum.
    pub nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false }
    }
}

impl BuildOptimizer for Sgd {
    fn build(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>> {
        require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
        require(self.momentum >= 0.0, "momentum", self.momentum, "at least 0")?;
        require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "at least 0")?;
        if self.nesterov {
            let momentum = self.momentum;
            require(momentum > 0.0, "momentum", momentum, "positive with nesterov")?;
            require(self.dampening == 0.0, "dampening", self.dampening, "0 with nesterov")?;
        }
        let buffers = match self.momentum {
            0.0 => Vec::new(),
            _ => zeros_like(&parameters, widens)?,
        };
        let started = vec![false; parameters.len()];
        Ok(Box::new(Running { options: *self, parameters, buffers, started }))
    }
}

/// The 16-bit kernels of libtorch 2.11 lose the momentum on the CPU (a bf16 net stays at chance;
/// PyTorch's own `SGD(fused=True)` does too), so 16-bit parameters are stepped in f32, with their
/// momentum in f32, and only the result is rounded.
struct Running {
    options: Sgd,
    parameters: Vec<Parameter>,
    buffers: Vec<Tensor>,
    /// Whether a parameter has been stepped: its first gradient fills the buffer undamped.
    started: Vec<bool>,
}

fn widens(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}

impl Running {
    /// Steps parameters of one dtype, given with their gradients and their places in the list.
    fn step_on(&self, params: &[Tensor], grads: &[Tensor], places: &[usize]) -> Result<()> {
        for first_step in [true, false] {
            let chosen: Vec<usize> =
                (0..places.len()).filter(|at| self.started[places[*at]] != first_step).collect();
            if chosen.is_empty() {
                continue;
            }
            let pick = |from: &[Tensor]| -> Vec<Tensor> {
                chosen.iter().map(|at| from[*at].shallow_clone()).collect()
            };
            let buffers = match self.buffers.is_empty() {
                true => Vec::new(),
                false => {
                    chosen.iter().map(|at| self.buffers[places[*at]].shallow_clone()).collect()
                }
            };
            let Sgd { lr, momentum, dampening, weight_decay, nesterov } = self.options;
            let options =
                SgdOptions { lr, momentum, dampening, weight_decay, nesterov, first_step };
            ffi::fused_sgd(&pick(params), &pick(grads), &buffers, &options)?;
        }
        Ok(())
    }
}

impl Optimizer for Running {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn step(&mut self) -> Result<()> {
        for group in groups(&self.parameters)? {
            group.step(widens, |params, grads, places| self.step_on(params, grads, places))?;
            for at in &group.index {
                self.started[*at] = true;
            }
        }
        Ok(())
    }

    fn rates(&self) -> Rates {
        let momentum = (self.options.momentum > 0.0).then_some(self.options.momentum);
        Rates { lr: self.options.lr, momentum }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.options.lr = rates.lr;
        if let Some(momentum) = rates.momentum {
            self.options.momentum = momentum;
        }
    }
}
