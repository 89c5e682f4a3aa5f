//! What happens to steps that are not finite, and when the loss scale is too low.

use crate::{Error, Result, named::named, precision::Precision};
use serde::{Deserialize, Serialize};

/// What happens to steps that are not finite, and when the loss scale is too low.
///
/// ```
/// use amp_core::{prelude::*, trainer::NonFinite};
///
/// let config = TrainerConfig::new(Precision::F16Mixed, Device::Cpu).with(|config| {
///     config.recovery.on_non_finite = NonFinite::LowerScale;
///     config.recovery.max_consecutive_skips = 20;
/// });
/// assert!(config.check().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveryConfig {
    /// What happens to a step whose gradients are not finite.
    pub on_non_finite: NonFinite,
    /// The largest number of skipped steps in a row. If it is exceeded, the run ends.
    pub max_consecutive_skips: u64,
    /// The number of applied steps between two copies of the state. [`NonFinite::RestoreLastGood`]
    /// restores the last copy.
    pub keep_good_every_n_steps: u64,
    /// The lowest allowed loss scale.
    pub scale_floor: ScaleFloor,
    /// Whether a skipped step is repeated once with observers, to find the module in which the
    /// first value was not finite. It costs nothing for other steps.
    pub provenance: bool,
    /// Whether a skipped step advances the schedule and the step count, and keeps the changes of its
    /// forward pass (batch statistics, the model's state, the random generator), as in Lightning.
    /// Otherwise it changes nothing.
    pub skipped_step_advances: bool,
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        Self {
            on_non_finite: NonFinite::default(),
            max_consecutive_skips: 100,
            keep_good_every_n_steps: 100,
            scale_floor: ScaleFloor::default(),
            provenance: true,
            skipped_step_advances: false,
        }
    }
}

impl RecoveryConfig {
    pub(super) fn check(&self, precision: Precision) -> Result<()> {
        if self.keep_good_every_n_steps == 0 {
            return Err(Error::config("keep_good_every_n_steps is 0, but must be at least 1"));
        }
        let (floor, lowest) = (self.scale_floor.min_scale, f64::from(f32::MIN_POSITIVE));
        if !(floor >= lowest && floor.is_finite()) {
            // At a lower scale, 1 / scale is infinite in f32, and unscaling would destroy finite
            // gradients.
            return Err(Error::config(format!(
                "the scale floor is {floor:e}, but must be at least {lowest:e}"
            )));
        }
        if self.on_non_finite == NonFinite::FallBackToBf16 && precision != Precision::F16Mixed {
            return Err(Error::config(format!(
                "falling back to bf16 is for 16-mixed, not for {precision}: choose another \
                 on_non_finite"
            )));
        }
        Ok(())
    }

    /// Returns whether a step may be repeated.
    pub(super) fn runs_again(&self) -> bool {
        matches!(self.on_non_finite, NonFinite::LowerScale | NonFinite::FallBackToBf16)
            || self.scale_floor.then == AtFloor::FallBackToBf16
    }
}

/// What happens to a step whose gradients are not finite. Such a step is never applied, and the
/// trainer searches for its cause.
///
/// An overflow of scaled gradients with a finite loss is always handled by the scaler: under
/// `16-mixed` the step is skipped and the scale is lowered. The choice applies to the other cases:
/// a forward pass that is not finite, gradients that are not finite under another precision, and
/// more than [`max_consecutive_skips`](RecoveryConfig::max_consecutive_skips) skipped steps in a
/// row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NonFinite {
    /// Does not check the gradients, as in Lightning, so that NaN can reach the weights. This saves
    /// one pass over the gradients and one read by the host in each step. Under `16-mixed` the
    /// gradients are always checked.
    Ignore,
    /// Skips the step. Too many skips in a row end the run.
    #[default]
    Skip,
    /// Under `16-mixed`, repeats the same examples with a lower scale until the step is finite, so
    /// that no examples are lost. Under other precisions it is the same as [`Skip`](Self::Skip).
    LowerScale,
    /// Restores the weights, optimizer state and schedule of the last kept state (see
    /// [`keep_good_every_n_steps`](RecoveryConfig::keep_good_every_n_steps)), and continues with
    /// the next examples. If the same state is restored twice without an applied step in between,
    /// the run ends.
    RestoreLastGood,
    /// Continues in `bf16-mixed`. It is available only in `16-mixed`.
    FallBackToBf16,
    /// Ends the run with the cause as its error.
    Stop,
}

named!(NonFinite, "policy", {
    Ignore => "ignore",
    Skip => "skip",
    LowerScale => "lower-scale",
    RestoreLastGood => "restore-last-good",
    FallBackToBf16 => "fall-back-to-bf16",
    Stop => "stop",
});

/// The lowest allowed loss scale. PyTorch has no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScaleFloor {
    /// The lowest scale with which training continues; fairseq's `min_loss_scale`.
    pub min_scale: f64,
    /// What happens below this scale.
    pub then: AtFloor,
}

impl Default for ScaleFloor {
    fn default() -> Self {
        Self { min_scale: 1e-4, then: AtFloor::Halt }
    }
}

/// What happens when the scale falls below its lowest value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AtFloor {
    /// Ends the run with an error.
    #[default]
    Halt,
    /// Keeps the scale at its lowest value, with a note.
    Warn,
    /// Continues in `bf16-mixed`.
    FallBackToBf16,
}

named!(AtFloor, "policy", {
    Halt => "halt",
    Warn => "warn",
    FallBackToBf16 => "fall-back-to-bf16",
});
