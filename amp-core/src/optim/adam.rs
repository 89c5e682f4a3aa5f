//! Adam and AdamW (torch/optim/adam.py, adamw.py).

use serde_json::{Map, Value};
use tch::{Device, Kind};

use super::{
    Algorithm, Capabilities, Moments, Rates, Slot, StepTensors,
    algorithm::{self, kept},
    require,
    state::SlotShape,
};
use crate::{
    Result,
    ffi::{self, AdamStep, Kernels},
    parameter::Parameter,
};

/// AdamW: Adam with decoupled weight decay. The defaults are those of torch.optim.AdamW.
///
/// ```
/// use amp_core::optim::{AdamW, Interval, OptimizerConfig, WarmupCosine};
///
/// let schedule = WarmupCosine { warmup_steps: 100, total_steps: 1000 };
/// let optimizer = AdamW { lr: 3e-4, betas: (0.9, 0.95), ..Default::default() };
/// let config = OptimizerConfig::new(optimizer).with_scheduler(schedule, Interval::Step);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct AdamW {
    /// The learning rate.
    pub lr: f64,
    /// The decay rates: β₁ for the running average of the gradient, β₂ for that of the squared
    /// gradient.
    pub betas: (f64, f64),
    /// The number that is added to the square root of the running average of squared gradients.
    pub eps: f64,
    /// The weight decay: each step subtracts lr·weight_decay·weight from the weight.
    pub weight_decay: f64,
    /// Whether one kernel computes the whole step (torch's `fused=True`). Otherwise the step
    /// consists of a few kernels, each of which processes all parameters (`foreach=True`). The
    /// results of the two settings may differ in the last bits. On CUDA the single kernel is a
    /// kernel of this crate, which can also unscale and clip the gradients, and can be captured in
    /// a CUDA graph.
    pub fused: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 1e-2, fused: true }
    }
}

/// Adam, with L2 weight decay. The defaults are those of torch.optim.Adam.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Adam {
    /// The learning rate.
    pub lr: f64,
    /// The decay rates: β₁ for the running average of the gradient, β₂ for that of the squared
    /// gradient.
    pub betas: (f64, f64),
    /// The number that is added to the square root of the running average of squared gradients.
    pub eps: f64,
    /// The weight decay: weight_decay·weight is added to the gradient.
    pub weight_decay: f64,
    /// See [`AdamW::fused`].
    pub fused: bool,
}

impl Default for Adam {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0, fused: true }
    }
}

macro_rules! adam {
    ($options:ident, $decoupled:literal) => {
        impl Algorithm for $options {
            const NAME: &'static str = stringify!($options);
            const ELEMENTWISE: bool = true;

            /// Returns the reason why f16 parameters are updated in f32; `None` for other dtypes.
            /// f16 represents the square of a gradient only if the gradient is between 2⁻¹² and 2⁸.
            /// For smaller gradients the running average of the squares becomes zero, and the
            /// update is divided by eps. For larger gradients the running average becomes infinite,
            /// and the parameter never changes again (Lightning #20619).
            fn upcasts(kind: Kind) -> Option<&'static str> {
                (kind == Kind::Half)
                    .then_some("float16 cannot represent the square of a small gradient")
            }

            fn check(&self) -> Result<()> {
                require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
                require(self.eps >= 0.0, "eps", self.eps, "at least 0")?;
                super::require_betas(self.betas)?;
                require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "at least 0")
            }

            fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
                // The fused kernel reads the number of steps on the device. The foreach kernels
                // read the number of steps on the host.
                let shape = if self.fused { SlotShape::Scalar } else { SlotShape::HostScalar };
                Ok(vec![
                    Slot::like_parameter("exp_avg"),
                    Slot::of_squares("exp_avg_sq"),
                    Slot { name: "step", shape },
                ])
            }

            fn rates(&self) -> Rates {
                Rates { lr: self.lr, momentum: Some(self.betas.0) }
            }

            fn set_rates(&mut self, rates: Rates) {
                self.lr = rates.lr;
                self.betas.0 = rates.momentum.unwrap_or(self.betas.0);
            }

            fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
                let Self { lr, betas: (beta1, beta2), eps, weight_decay, fused } = *self;
                let decoupled = $decoupled.into();
                let options = AdamStep { lr, beta1, beta2, eps, weight_decay, decoupled };
                step(tensors, &options, fused)
            }

            fn capabilities(&self, device: Device) -> Capabilities {
                Capabilities {
                    skips: self.fused,
                    ..Capabilities::all(self.fused && device.is_cuda())
                }
            }

            fn takes(&self, moments: Moments, kind: Kind, device: Device) -> bool {
                let ours = self.fused && device.is_cuda() && kind == Kind::Float;
                moments == Moments::Full || ours
            }

            fn fields(&self) -> Option<Map<String, Value>> {
                algorithm::fields(self)
            }
        }
    };
}

adam!(AdamW, true);
adam!(Adam, false);

fn step(tensors: &StepTensors<'_>, options: &AdamStep, fused: bool) -> Result<()> {
    let StepTensors { params, grads, states, scales, codes, .. } = *tensors;
    let [exp_avgs, exp_avg_sqs, steps] = states else {
        unreachable!("Adam has three slots");
    };
    let [exp_avg_scales, exp_avg_sq_scales] = [0, 1].map(|at| kept(scales.get(at)));
    let lists = [params, grads, exp_avgs, exp_avg_sqs, steps, exp_avg_scales, exp_avg_sq_scales];
    let code = match codes {
        [exp_avg, exp_avg_sq] => {
            let ([a, b], [c, d]) = (exp_avg.tables(), exp_avg_sq.tables());
            Some([a, b, c, d])
        }
        _ => None,
    };
    let kernels = tensors.kernels(fused);
    if !matches!(kernels, Kernels::Ours(_)) {
        ffi::foreach_add(steps, 1.0)?;
    }
    ffi::adam(lists, code, options, kernels)
}
