//! The rule by which the loss scale falls and grows.

use amp_core::precision::{GradScalerConfig, StepOutcome};

/// Computes the expected loss scale after each step, in f32 as the trainer does on the device.
pub(super) struct ScaleRule {
    constants: GradScalerConfig,
    scale: f32,
    /// The number of applied steps since the loss scale last changed.
    since: i64,
    /// How many times the loss scale has grown.
    pub(super) grown: u64,
    /// How many times the loss scale has fallen.
    pub(super) backed_off: u64,
}

impl ScaleRule {
    pub(super) fn new(constants: GradScalerConfig) -> Self {
        let scale = constants.init_scale as f32;
        Self { constants, scale, since: 0, grown: 0, backed_off: 0 }
    }

    /// Returns the current loss scale.
    pub(super) fn now(&self) -> f64 {
        f64::from(self.scale)
    }

    /// Returns the loss scale after a step with this outcome.
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
        self.now()
    }
}
