//! Adam and AdamW (torch/optim/adam.py, adamw.py) on the fused kernels.

use tch::{Kind, Tensor};

use super::{BuildOptimizer, Optimizer, Rates, groups, require};
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

/// The factor on f16 gradients inside the kernel.
///
/// f16 moments flush the running square (1−β₂)g² to zero below 2⁻²⁵, that is for |g| under 5e-3:
/// the update then divides by eps alone and runs away (Lightning #20619). Adam's update does not
/// depend on the gradient's scale as long as eps takes part, so the kernel sees gradients times
/// 2⁸: room below, and room above up to |g| = 31.
const HALF_SCALE: f64 = 256.0;

/// The smallest eps with which an f16 running square that was flushed to zero moves a weight by
/// no more than lr: √(2⁻²⁴ / (1−β₂)) in the kernel's scale.
fn smallest_half_eps(beta2: f64) -> f64 {
    (2.0_f64.powi(-24) / (1.0 - beta2)).sqrt() / HALF_SCALE
}

struct Running {
    options: AdamOptions,
    parameters: Vec<Parameter>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    /// f32, on the parameters' device, as the kernels want them.
    steps: Vec<Tensor>,
    /// 1 / [`HALF_SCALE`]: the kernel divides f16 gradients by it.
    half_scale: Option<Tensor>,
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
        let zeros = || -> Result<Vec<Tensor>> {
            parameters.iter().map(|p| Ok(p.tensor.f_zeros_like()?.f_detach()?)).collect()
        };
        let steps = parameters
            .iter()
            .map(|p| Tensor::f_zeros([], (Kind::Float, p.tensor.device())))
            .collect::<Result<_, _>>()?;
        let half = parameters.iter().find(|p| p.tensor.kind() == Kind::Half);
        let half_scale = half
            .map(|p| Tensor::f_full([], 1.0 / HALF_SCALE, (Kind::Float, p.tensor.device())))
            .transpose()?;
        Ok(Self { exp_avgs: zeros()?, exp_avg_sqs: zeros()?, steps, half_scale, options, parameters })
    }

    /// The options of one dtype's call: what an f16 call needs besides its scaled gradients.
    fn options_for(&self, kind: Option<Kind>) -> AdamOptions {
        let mut options = self.options;
        if kind == Some(Kind::Half) {
            options.eps = options.eps.max(smallest_half_eps(options.betas.1)) * HALF_SCALE;
            if !options.decoupled {
                options.weight_decay *= HALF_SCALE;
            }
        }
        options
    }
}

impl Optimizer for Running {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn step(&mut self) -> Result<()> {
        for group in groups(&self.parameters)? {
            let pick = |from: &[Tensor]| -> Vec<Tensor> {
                group.index.iter().map(|at| from[*at].shallow_clone()).collect()
            };
            let steps = pick(&self.steps);
            ffi::foreach_add(&steps, 1.0)?;
            let tensors = AdamTensors {
                params: &group.params,
                grads: &group.grads,
                exp_avgs: &pick(&self.exp_avgs),
                exp_avg_sqs: &pick(&self.exp_avg_sqs),
                steps: &steps,
            };
            let half = group.kind == Some(Kind::Half);
            let scale = if half { self.half_scale.as_ref() } else { None };
            ffi::fused_adam(&tensors, &self.options_for(group.kind), scale)?;
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
        let smallest = smallest_half_eps(self.options.betas.1);
        (self.half_scale.is_some() && self.options.eps < smallest).then(|| {
            format!(
                "eps raised from {:e} to {smallest:.1e}: a running square below that is zero in f16",
                self.options.eps
            )
        })
    }
}
