//! LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", Algorithm 2).

use super::{
    Algorithm, Number, ParameterStep, Rates, Slot, StepTensors, algorithm::stepped_by_rule,
    require, require_betas,
};
use crate::{Result, parameter::Parameter};

/// LAMB: Adam's update, scaled to the norm of the parameter, for training with large batches. m and
/// v are Adam's running averages of the gradient and of its square. The divisors 1 − βᵗ correct for
/// the averages' start at zero. In step t, with weight w:
///
/// - u = m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + eps) + weight_decay·w.
/// - w ← w − lr·(‖w‖/‖u‖)·u.
///
/// Each norm is over a whole parameter. If one of the two norms is 0, as for a bias that starts at
/// zero, the quotient is replaced by 1.
///
/// ```
/// use amp_core::optim::{Lamb, OptimizerConfig};
/// let config = OptimizerConfig::new(Lamb { lr: 2e-3, ..Default::default() });
/// ```
///
/// 16-bit weights are updated in f32. The step can be captured in a CUDA graph.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Lamb {
    /// The learning rate.
    pub lr: f64,
    /// The decay rates: β₁ for the running average of the gradient, β₂ for that of the squared
    /// gradient.
    pub betas: (f64, f64),
    /// The number that is added to the square root of the running average of squared gradients.
    pub eps: f64,
    /// The weight decay: weight_decay·weight is added to the update.
    pub weight_decay: f64,
}

impl Default for Lamb {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-6, weight_decay: 1e-2 }
    }
}

const STEP: &str = "step";
const MEAN: &str = "exp_avg";
const SQUARE: &str = "exp_avg_sq";

impl Algorithm for Lamb {
    const NAME: &'static str = "LAMB";

    fn check(&self) -> Result<()> {
        require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
        require_betas(self.betas)?;
        require(self.eps >= 0.0, "eps", self.eps, "at least 0")?;
        require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "at least 0")
    }

    fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
        Ok(vec![Slot::like_parameter(MEAN), Slot::of_squares(SQUARE), Slot::count(STEP)])
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: Some(self.betas.0) }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
        self.betas.0 = rates.momentum.unwrap_or(self.betas.0);
    }

    stepped_by_rule!();
}

impl Lamb {
    fn rule(&self, one: &ParameterStep<'_>) -> Result<()> {
        let (param, grad) = (one.param(), one.grad());
        let (mean, square) = (one.slot(MEAN)?, one.slot(SQUARE)?);
        let (step, beta1, beta2) = (one.count(STEP)?, one.momentum(), Number::from(self.betas.1));
        let rest = |number: &Number| Number::from(1.0).minus(number);
        rest(&beta1)?.lerp(mean, grad)?;
        rest(&beta2)?.lerp(square, &grad.f_square()?)?;
        let mean = Number::from(1.0).over(rest(&beta1.to_the(&step)?)?)?.scaled(mean)?;
        let square = Number::from(1.0).over(rest(&beta2.to_the(&step)?)?)?.scaled(square)?;
        let update = mean.f_div(&square.f_sqrt()?.f_add_scalar(self.eps)?)?;
        Number::from(self.weight_decay).add(&update, param)?;
        let (size, length) = (one.norm(param)?, one.norm(&update)?);
        // If ‖w‖ is 0 or ‖u‖ is 0, the quotient would be 0 or infinite; it is replaced by 1.
        let trust = size.over(length.if_positive_or(f64::INFINITY)?)?.if_positive_or(1.0)?;
        one.lr().times(-1.0)?.times(trust)?.add(param, &update)
    }
}
