//! Rules for single steps: when a step is skipped, what a skipped step leaves unchanged, and how
//! the scale changes.

use amp_core::{
    precision::{GradScalerConfig, StepOutcome},
    tch::Tensor,
};

use amp_core::Result;

/// Computes the loss scale by its rule, in f32 as on the device.
pub(super) struct ScaleRule {
    constants: GradScalerConfig,
    scale: f32,
    /// The number of steps since the last change.
    since: i64,
    /// The numbers of increases and decreases of the loss scale.
    pub(super) grown: u64,
    pub(super) backed_off: u64,
}

impl ScaleRule {
    pub(super) fn new(constants: GradScalerConfig) -> Self {
        let scale = constants.init_scale as f32;
        Self { constants, scale, since: 0, grown: 0, backed_off: 0 }
    }

    /// Returns the scale after a step with this outcome.
    pub(super) fn after(&mut self, outcome: &StepOutcome) -> f64 {
        let GradScalerConfig { growth_factor, backoff_factor, growth_interval, .. } =
            self.constants;
        if *outcome != StepOutcome::Applied {
            (self.scale, self.since) = ((f64::from(self.scale) * backoff_factor) as f32, 0);
            self.backed_off += 1;
        } else {
            self.since += 1;
            if self.since == growth_interval {
                (self.scale, self.since) = ((f64::from(self.scale) * growth_factor) as f32, 0);
                self.grown += 1;
            }
        }
        f64::from(self.scale)
    }
}

/// Whether all values are finite.
pub(super) fn is_finite<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<bool> {
    for tensor in tensors {
        if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}
