//! SGD with momentum (torch/optim/sgd.py) on the fused kernel.

use tch::Tensor;

use super::{BuildOptimizer, Optimizer, Rates, groups, require};
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
            _ => parameters
                .iter()
                .map(|p| Ok(p.tensor.f_zeros_like()?.f_detach()?))
                .collect::<Result<_>>()?,
        };
        let started = vec![false; parameters.len()];
        Ok(Box::new(Running { options: *self, parameters, buffers, started }))
    }
}

struct Running {
    options: Sgd,
    parameters: Vec<Parameter>,
    buffers: Vec<Tensor>,
    /// Whether a parameter has been stepped: its first gradient fills the buffer undamped.
    started: Vec<bool>,
}

impl Optimizer for Running {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn step(&mut self) -> Result<()> {
        for group in groups(&self.parameters)? {
            for first_step in [true, false] {
                let chosen: Vec<usize> = (0..group.index.len())
                    .filter(|at| self.started[group.index[*at]] != first_step)
                    .collect();
                if chosen.is_empty() {
                    continue;
                }
                let pick = |from: &[Tensor], at: &dyn Fn(usize) -> usize| -> Vec<Tensor> {
                    chosen.iter().map(|i| from[at(*i)].shallow_clone()).collect()
                };
                let buffers = match self.buffers.as_slice() {
                    [] => Vec::new(),
                    buffers => pick(buffers, &|i| group.index[i]),
                };
                let Sgd { lr, momentum, dampening, weight_decay, nesterov } = self.options;
                let options =
                    SgdOptions { lr, momentum, dampening, weight_decay, nesterov, first_step };
                let (params, grads) = (pick(&group.params, &|i| i), pick(&group.grads, &|i| i));
                ffi::fused_sgd(&params, &grads, &buffers, &options)?;
            }
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
