//! The scaler's constants, its saved state, and the computation of the next loss scale.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The constants of the scaler. Their defaults are those of PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GradScalerConfig {
    /// The loss scale of the first step.
    pub init_scale: f64,
    /// The factor by which the loss scale grows after `growth_interval` steps without overflow. It
    /// must be above 1.
    pub growth_factor: f64,
    /// The factor by which the loss scale is multiplied after an overflow. It must be below 1.
    pub backoff_factor: f64,
    /// The number of steps in a row without overflow after which the loss scale grows.
    pub growth_interval: i64,
}

impl Default for GradScalerConfig {
    fn default() -> Self {
        Self { init_scale: 65536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000 }
    }
}

/// The scaler's state in a checkpoint, with PyTorch's keys.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScalerState {
    /// The current loss scale.
    pub scale: f64,
    /// The factor by which the scale grows, as in [`GradScalerConfig::growth_factor`].
    pub growth_factor: f64,
    /// The factor by which the scale is multiplied after an overflow, as in
    /// [`GradScalerConfig::backoff_factor`].
    pub backoff_factor: f64,
    /// The number of steps in a row without overflow after which the scale grows, as in
    /// [`GradScalerConfig::growth_interval`].
    pub growth_interval: i64,
    /// The number of steps since the last overflow or the last growth of the scale. PyTorch's key
    /// is `_growth_tracker`.
    #[serde(rename = "_growth_tracker")]
    pub growth_tracker: i32,
}

impl GradScalerConfig {
    /// Checks all constants and returns the initial scale in f32.
    pub(super) fn checked_scale(&self) -> Result<f32> {
        let Self { init_scale, growth_factor, backoff_factor, growth_interval } = *self;
        let within = |holds: bool, what: &str, value: f64, range: &str| match holds {
            true => Ok(()),
            false => Err(Error::Scaler(format!("the {what} is {value}, but must be {range}"))),
        };
        let scale = usable_scale(init_scale)?;
        let grows = growth_factor > 1.0 && growth_factor.is_finite();
        within(grows, "growth factor", growth_factor, "above 1 and finite")?;
        let backs_off = backoff_factor > 0.0 && backoff_factor < 1.0;
        within(backs_off, "backoff factor", backoff_factor, "below 1 and above 0")?;
        within(growth_interval >= 1, "growth interval", growth_interval as f64, "at least 1")?;
        Ok(scale)
    }

    /// Computes the next scale and growth tracker as ATen's `_amp_update_scale_` does. Products are
    /// computed in f64 and rounded to f32.
    pub(crate) fn next(&self, (scale, tracker): (f32, i32), overflowed: bool) -> (f32, i32) {
        if overflowed {
            return ((f64::from(scale) * self.backoff_factor) as f32, 0);
        }
        if i64::from(tracker) + 1 < self.growth_interval {
            return (scale, tracker + 1);
        }
        let grown = (f64::from(scale) * self.growth_factor) as f32;
        (if grown.is_finite() { grown } else { scale }, 0)
    }
}

/// Converts the scale to f32. Returns an error if the scale is not positive and finite. PyTorch
/// reports no error, and trains on gradients that are zero or NaN.
pub(super) fn usable_scale(scale: f64) -> Result<f32> {
    let narrow = scale as f32;
    if narrow > 0.0 && narrow.is_finite() {
        return Ok(narrow);
    }
    Err(Error::Scaler(format!(
        "the loss scale is {scale}, but must be positive and finite in float32"
    )))
}
