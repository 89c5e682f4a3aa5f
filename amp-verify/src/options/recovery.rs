use std::str::FromStr;

use amp_core::{
    precision::GradScalerConfig,
    trainer::{AtFloor, NonFinite, RecoveryConfig, ScaleFloor},
};
use clap::Args;

/// Options for steps with NaN or infinities.
#[derive(Debug, Args)]
pub struct RecoveryArgs {
    /// What to do after a step with NaN or infinities, in addition to lowering the loss scale:
    /// ignore, skip, lower-scale, restore-last-good, fall-back-to-bf16 or stop
    #[arg(long, value_name = "POLICY", value_parser = NonFinite::from_str,
          default_value_t = NonFinite::default())]
    pub on_non_finite: NonFinite,
    /// The initial loss scale under 16-mixed
    #[arg(long, value_name = "SCALE", default_value_t = GradScalerConfig::default().init_scale,
          value_parser = loss_scale)]
    pub init_scale: f64,
    /// Number of steps without overflow after which the loss scale doubles
    #[arg(long, value_name = "STEPS",
          default_value_t = GradScalerConfig::default().growth_interval,
          value_parser = clap::value_parser!(i64).range(1..))]
    pub growth_interval: i64,
    /// The lowest allowed loss scale
    #[arg(long, value_name = "SCALE", default_value_t = ScaleFloor::default().min_scale)]
    pub min_scale: f64,
    /// What to do if the loss scale falls below --min-scale: halt, warn or fall-back-to-bf16
    #[arg(long, value_name = "POLICY", value_parser = AtFloor::from_str,
          default_value_t = AtFloor::default())]
    pub at_min_scale: AtFloor,
}

impl RecoveryArgs {
    /// Returns the options of the loss scale.
    pub fn scaler(&self) -> GradScalerConfig {
        GradScalerConfig {
            init_scale: self.init_scale,
            growth_interval: self.growth_interval,
            ..GradScalerConfig::default()
        }
    }

    /// Returns the options for steps with NaN or infinities.
    pub fn recovery(&self) -> RecoveryConfig {
        RecoveryConfig {
            on_non_finite: self.on_non_finite,
            scale_floor: ScaleFloor { min_scale: self.min_scale, then: self.at_min_scale },
            ..RecoveryConfig::default()
        }
    }
}

/// Parses a loss scale. It must be above 0 and finite as an f32 number.
fn loss_scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|error| format!("{error}"))?;
    let usable = (scale as f32).is_finite() && scale as f32 > 0.0;
    usable.then_some(scale).ok_or_else(|| "it must be above 0 and finite as an f32".to_owned())
}
