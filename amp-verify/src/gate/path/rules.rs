//! The rule by which a loss scale moves.

use amp_core::precision::{GradScalerConfig, StepOutcome};

/// The loss scale according to its rule, in f32 as on the device.
pub(super) struct ScaleRule {
    constants: GradScalerConfig,
    scale: f32,
    /// Steps since it last moved.
    since: i64,
    /// The number of times it grew and fell.
    pub(super) grown: u64,
    pub(super) backed_off: u64,
}

impl ScaleRule {
    pub(super) fn new(constants: GradScalerConfig) -> Self {
        let scale = constants.init_scale as f32;
        Self { constants, scale, since: 0, grown: 0, backed_off: 0 }
    }

    /// The scale after a step with this outcome.
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
