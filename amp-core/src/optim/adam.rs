//! Adam and AdamW (torch/optim/adam.py, adamw.py) on the fused kernels.

use tch::{Kind, Tensor};

use super::{BuildOptimizer, Optimizer, Rates, groups, require, zeros_like};
use crate::{
    Result,
    ffi::{self, AdamOptions, AdamTensors},
    nn::Parameter,
};

/// Adam with decoupled weight decay; defaults are torch.optim.AdamW's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the running mean and of the running square.
    pub betas: (f64, f64),
    /// Added to the root of the running square.
    pub eps: f64,
    /// Each step takes lr·weight_decay of the weight away.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 1e-2 }
    }
}

/// Adam with L2 weight decay; defaults are torch.optim.Adam's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the running mean and of the running square.
    pub betas: (f64, f64),
    /// Added to the root of the running square.
    pub eps: f64,
    /// weight_decay·weight is added to the gradient.
    pub weight_decay: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0 }
    }
}

impl BuildOptimizer for AdamW {
    fn build(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>> {
        let Self { lr, betas, eps, weight_decay } = *self;
        let options = AdamOptions { lr, betas, eps, weight_decay, decoupled: true };
        Ok(Box::new(Running::new(options, parameters)?))
    }
}

impl BuildOptimizer for Adam {
    fn build(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>> {
        let Self { lr, betas, eps, weight_decay } = *self;
        let options = AdamOptions { lr, betas, eps, weight_decay, decoupled: false };
        Ok(Box::new(Running::new(options, parameters)?))
    }
}

/// f16 holds the square of a gradient between 2⁻¹² and 2⁸ alone: below, the running square is
/// zero and the update is divided by eps; above, it is infinite and the parameter never moves
/// again (Lightning #20619). So f16 parameters keep their running averages in f32 and are stepped
/// in f32; only the result is rounded. Other dtypes keep theirs, as in PyTorch.
struct Running {
    options: AdamOptions,
    parameters: Vec<Parameter>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    /// f32, on the parameters' device, as the kernels want them.
    steps: Vec<Tensor>,
}

fn widens(kind: Kind) -> bool {
    kind == Kind::Half
}

impl Running {
    fn new(options: AdamOptions, parameters: Vec<Parameter>) -> Result<Self> {
        let (beta1, beta2) = options.betas;
        require(options.lr >= 0.0, "lr", options.lr, "at least 0")?;
        require(options.eps >= 0.0, "eps", options.eps, "at least 0")?;
        require((0.0..1.0).contains(&beta1), "betas.0", beta1, "in [0, 1)")?;
        require((0.0..1.0).contains(&beta2), "betas.1", beta2, "in [0, 1)")?;
        let decay = options.weight_decay;
        require(decay >= 0.0, "weight_decay", decay, "at least 0")?;
        let zeros = || zeros_like(&parameters, widens);
        let steps = parameters
            .iter()
            .map(|p| Tensor::f_zeros([], (Kind::Float, p.tensor.device())))
            .collect::<Result<_, _>>()?;
        Ok(Self { exp_avgs: zeros()?, exp_avg_sqs: zeros()?, steps, options, parameters })
    }

    /// Steps parameters of one dtype, given with their gradients and their places in the list.
    fn step_on(&self, params: &[Tensor], grads: &[Tensor], places: &[usize]) -> Result<()> {
        let pick = |from: &[Tensor]| -> Vec<Tensor> {
            places.iter().map(|at| from[*at].shallow_clone()).collect()
        };
        let steps = pick(&self.steps);
        ffi::foreach_add(&steps, 1.0)?;
        let (exp_avgs, exp_avg_sqs) = (&pick(&self.exp_avgs), &pick(&self.exp_avg_sqs));
        let tensors = AdamTensors { params, grads, exp_avgs, exp_avg_sqs, steps: &steps };
        ffi::fused_adam(&tensors, &self.options)
    }
}

impl Optimizer for Running {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn step(&mut self) -> Result<()> {
        for group in groups(&self.parameters)? {
            group.step(widens, |params, grads, places| self.step_on(params, grads, places))?;
        }
        Ok(())
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.options.lr, momentum: Some(self.options.betas.0) }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.options.lr = rates.lr;
        if let Some(momentum) = rates.momentum {
            self.options.betas.0 = momentum;
        }
    }

    fn note(&self) -> Option<String> {
        let half = self.parameters.iter().any(|p| widens(p.tensor.kind()));
        half.then(|| "Adam steps in float32: float16 cannot hold a gradient's square".to_owned())
    }
}
