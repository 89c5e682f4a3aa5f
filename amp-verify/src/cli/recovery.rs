use std::str::FromStr;

use amp_core::trainer::{AtFloor, NonFinite, ScaleFloor};
use clap::Args;

/// What is done about steps that are not finite.
#[derive(Debug, Args)]
pub struct RecoveryArgs {
    /// What to do about a step that is not finite, beyond the scaler's backing off: ignore, skip,
    /// lower-scale, restore-last-good, fall-back-to-bf16 or stop
    #[arg(long, value_name = "POLICY", value_parser = NonFinite::from_str,
          default_value_t = NonFinite::default())]
    pub on_non_finite: NonFinite,
    /// The lowest loss scale to train with
    #[arg(long, value_name = "SCALE", default_value_t = ScaleFloor::default().min_scale,
          allow_negative_numbers = true)]
    pub min_scale: f64,
    /// What to do below it: halt, warn or fall-back-to-bf16
    #[arg(long, value_name = "POLICY", value_parser = AtFloor::from_str,
          default_value_t = AtFloor::default())]
    pub at_min_scale: AtFloor,
}

impl RecoveryArgs {
    /// The floor of the loss scale.
    pub fn scale_floor(&self) -> ScaleFloor {
        ScaleFloor { min_scale: self.min_scale, then: self.at_min_scale }
    }
}
