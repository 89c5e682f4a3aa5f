use tch::{Kind, Tensor};

use super::Callback;
use crate::{
    Hook, Result,
    log::LogOptions,
    module::StepAccess,
    precision::{Gradients, Unscaled},
};

/// Logs statistics of the unscaled gradients before clipping. `grad_norm` is the 2-norm of all
/// gradients together. For each parameter NAME, `grad_norm/NAME` is the 2-norm of its gradient.
/// `grad_nan/NAME` and `grad_inf/NAME` are the numbers of NaN and infinite elements of the
/// gradient, and `grad_zero/NAME` is the fraction of its elements that are exactly zero. The values
/// are read from the device only when they are reported.
///
/// In f16, a gradient element becomes zero if its absolute value, multiplied by the loss scale, is
/// below 2⁻²⁵. Compare the fraction of zeros with an f32 run, because inactive ReLU units have zero
/// gradients as well.
#[derive(Debug, Clone)]
pub struct GradientStatistics {
    per_parameter: bool,
}

impl Default for GradientStatistics {
    fn default() -> Self {
        Self { per_parameter: true }
    }
}

impl GradientStatistics {
    /// Creates a callback that logs all statistics of every parameter.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a callback that logs only `grad_norm`, the norm of all gradients together.
    pub fn norm_only() -> Self {
        Self { per_parameter: false }
    }
}

impl Callback for GradientStatistics {
    fn name(&self) -> String {
        "GradientStatistics".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::InStep("GradientStatistics reads the gradients")
    }

    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        hook.log("grad_norm", &gradients.norm()?, LogOptions::ON_STEP)?;
        if !self.per_parameter {
            return Ok(());
        }
        for (name, gradient) in gradients.named() {
            let sum = |mask: Tensor| -> Result<Tensor> { Ok(mask.f_sum(Kind::Double)?) };
            let values = [
                ("grad_norm", gradient.f_to_kind(Kind::Float)?.f_norm()?),
                ("grad_nan", sum(gradient.f_isnan()?)?),
                ("grad_inf", sum(gradient.f_isinf()?)?),
                ("grad_zero", sum(gradient.f_eq(0.0)?)?.f_div_scalar(gradient.numel() as f64)?),
            ];
            for (statistic, value) in values {
                hook.log(&format!("{statistic}/{name}"), &value, LogOptions::ON_BOTH)?;
            }
        }
        Ok(())
    }
}
