//! Muon (torch/optim/_muon.py; Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks").

use super::{
    Algorithm, Number, ParameterStep, Rates, Slot, StepTensors, algorithm::stepped_by_rule, require,
};
use crate::{Error, Result, ffi, parameter::Parameter};

/// The factor by which [`Muon`] multiplies the learning rate for a matrix with `a` rows and `b`
/// columns. Without this factor, the singular values of the update are near 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub enum AdjustLr {
    /// √max(1, a/b), as in the code of Keller Jordan, the inventor of Muon.
    #[default]
    Original,
    /// 0.2·√max(a, b). The updates are then about as large as those of AdamW, so that AdamW's
    /// learning rate and weight decay can be used (Moonshot, "Muon is Scalable for LLM Training").
    MatchRmsAdamw,
}

/// Muon: the momentum of each matrix is made orthogonal before it is subtracted from the weights.
/// Muon is meant for the matrices of hidden layers. The defaults are those of torch.optim.Muon.
/// With momentum buffer B, gradient g, weight w, μ = [`momentum`](Self::momentum) and a, b, c =
/// [`ns_coefficients`](Self::ns_coefficients):
///
/// - B ← μB + (1 − μ)g.
/// - U = (1 − μ)g + μB with nesterov, and otherwise U = B.
/// - O is the result of [`ns_steps`](Self::ns_steps) iterations X ← aX + (bA + cA²)X, where
///   A = XXᵀ. The iterations start from X = U/‖U‖.
/// - w ← w − lr·weight_decay·w − lr·[`adjust_lr_fn`](Self::adjust_lr_fn)·O.
///
/// The iteration runs in bfloat16, on CUDA with tensor cores. For embeddings, the output layer,
/// biases and norms, use another optimizer:
///
/// ```
/// use amp_core::optim::{AdamW, Muon, OptimizerConfig, Optimizers, Selection};
/// let hidden = Selection::all().ndim(2).except(["embedding.*", "head.*"]);
/// let optimizers = Optimizers::from(vec![
///     OptimizerConfig::new(Muon { lr: 0.02, ..Default::default() }).params(hidden),
///     OptimizerConfig::new(AdamW { lr: 3e-4, ..Default::default() }),
/// ]);
/// ```
///
/// The same optimizers can be declared with attributes of the model: `#[optimizer(muon, lr = 0.02,
/// ndim = 2, except = ["embedding.*", "head.*"])]` above `#[optimizer(adamw, lr = 3e-4)]`. 16-bit
/// weights are updated in f32, whereas torch updates them in 16 bits. The step can be captured in a
/// CUDA graph.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Muon {
    /// The learning rate.
    pub lr: f64,
    /// The weight decay: each step subtracts lr·weight_decay·weight from the weight.
    pub weight_decay: f64,
    /// The decay rate of the running mean of gradients.
    pub momentum: f64,
    /// Whether the step uses Nesterov momentum.
    pub nesterov: bool,
    /// The coefficients a, b and c of the Newton-Schulz iteration.
    pub ns_coefficients: (f64, f64, f64),
    /// The lower limit of the norm ‖U‖ by which U is divided.
    pub eps: f64,
    /// The number of Newton-Schulz iterations, below 100, that make the momentum orthogonal.
    pub ns_steps: i64,
    /// The factor by which the learning rate is multiplied, depending on the shape of the matrix.
    pub adjust_lr_fn: AdjustLr,
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            weight_decay: 0.1,
            momentum: 0.95,
            nesterov: true,
            ns_coefficients: (3.4445, -4.7750, 2.0315),
            eps: 1e-7,
            ns_steps: 5,
            adjust_lr_fn: AdjustLr::Original,
        }
    }
}

const BUFFER: &str = "momentum_buffer";

impl Algorithm for Muon {
    const NAME: &'static str = "Muon";

    fn check(&self) -> Result<()> {
        require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
        require((0.0..1.0).contains(&self.momentum), "momentum", self.momentum, "in [0, 1)")?;
        require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "at least 0")?;
        require(self.eps >= 0.0, "eps", self.eps, "at least 0")?;
        let (a, b, c) = self.ns_coefficients;
        for coefficient in [a, b, c] {
            require(true, "ns_coefficients", coefficient, "finite")?;
        }
        let steps = self.ns_steps;
        require((0..100).contains(&steps), "ns_steps", steps as f64, "in [0, 100)")
    }

    fn slots(&self, parameter: &Parameter) -> Result<Vec<Slot>> {
        let shape = parameter.tensor.size();
        if shape.len() == 2 {
            return Ok(vec![Slot::like_parameter(BUFFER)]);
        }
        Err(Error::config(format!(
            "optimizer: Muon updates only matrices, but `{}` has shape {shape:?}: train it with \
             another optimizer, and select `ndim = 2` for Muon (in Rust, \
             Selection::all().ndim(2))",
            parameter.name
        )))
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: Some(self.momentum) }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
        self.momentum = rates.momentum.unwrap_or(self.momentum);
    }

    stepped_by_rule!();
}

impl Muon {
    fn rule(&self, one: &ParameterStep<'_>) -> Result<()> {
        let (param, grad, buffer) = (one.param(), one.grad(), one.slot(BUFFER)?);
        let (lr, momentum) = (one.lr(), one.momentum());
        Number::from(1.0).minus(&momentum)?.lerp(buffer, grad)?;
        let ahead = match self.nesterov {
            true => {
                let ahead = grad.f_detach_copy()?;
                momentum.lerp(&ahead, buffer)?;
                ahead
            }
            false => buffer.shallow_clone(),
        };
        let update = ffi::newton_schulz(&ahead, self.ns_coefficients, self.ns_steps, self.eps)?;
        Number::from(1.0).minus(lr.times(self.weight_decay)?)?.scale(param)?;
        lr.times(-self.adjusted(&param.size()))?.add(param, &update)
    }

    /// Returns the factor by which the learning rate is multiplied for a matrix of this shape.
    fn adjusted(&self, shape: &[i64]) -> f64 {
        let (rows, columns) = (shape[0] as f64, shape[1] as f64);
        match self.adjust_lr_fn {
            AdjustLr::Original => (rows / columns).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * rows.max(columns).sqrt(),
        }
    }
}
