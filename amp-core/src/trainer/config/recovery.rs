//! What happens after a step whose loss or gradients are not finite, and when the loss scale is too
//! low.

use crate::{Error, Result, named::named, precision::Precision};
use serde::{Deserialize, Serialize};

/// What happens after a step whose loss or gradients are not finite, and when the loss scale is too
/// low.
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
    /// The largest number of skipped steps in a row. If one more step is skipped,
    /// [`on_non_finite`](Self::on_non_finite) decides what happens. With the default policy,
    /// [`NonFinite::Skip`], the run ends.
    pub max_consecutive_skips: u64,
    /// The number of applied steps between two copies of the state. [`NonFinite::RestoreLastGood`]
    /// restores the last copy.
    pub keep_good_every_n_steps: u64,
    /// The lowest allowed loss scale, and what happens when the scale falls below it.
    pub scale_floor: ScaleFloor,
    /// Whether a skipped step is repeated once to find the module that computed the first value
    /// that was not finite. Steps that are not skipped are not slowed down.
    pub provenance: bool,
    /// Whether a skipped step advances the learning-rate schedule and the step count, and keeps
    /// what its forward pass changed (batch statistics, the model's state and the random
    /// generator), as in Lightning. Otherwise a skipped step changes nothing.
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
            // A scale below this limit is subnormal in f32, and at 2⁻¹²⁸ or less, 1 / scale is
            // infinite: unscaling would make finite gradients infinite.
            return Err(Error::config(format!(
                "the lowest allowed loss scale (min_scale) is {floor:e}, but must be at least \
                 {lowest:e}"
            )));
        }
        if self.on_non_finite == NonFinite::FallBackToBf16 && precision != Precision::F16Mixed {
            return Err(Error::config(format!(
                "fall-back-to-bf16 is allowed only under 16-mixed, not under {precision}: choose \
                 another on_non_finite"
            )));
        }
        Ok(())
    }

    /// Returns whether a run with these options may repeat a skipped step until it is applied, and
    /// not only to find the cause.
    pub(super) fn runs_again(&self) -> bool {
        matches!(self.on_non_finite, NonFinite::LowerScale | NonFinite::FallBackToBf16)
            || self.scale_floor.then == AtFloor::FallBackToBf16
    }
}

/// What happens to a step whose gradients are not finite. Under every policy but
/// [`Ignore`](Self::Ignore), such a step is never applied, and the trainer searches for the cause
/// (see [`provenance`](RecoveryConfig::provenance)).
///
/// Under `16-mixed`, it is normal that the scaled gradients of a finite loss overflow: the scaler
/// skips the step and lowers the loss scale, whatever the policy. The policy applies in the
/// remaining cases: the forward pass is not finite, gradients are not finite under another
/// precision, or more than [`max_consecutive_skips`](RecoveryConfig::max_consecutive_skips) steps
/// in a row were skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NonFinite {
    /// Does not check the gradients, as in Lightning, so that NaN can reach the weights. In each
    /// step, this saves one pass over the gradients, and the host does not wait to read the result
    /// of the check. Under `16-mixed` the gradients are always checked.
    Ignore,
    /// Skips the step. Too many skips in a row end the run.
    #[default]
    Skip,
    /// Under `16-mixed`, repeats the step with the same examples and a lower loss scale until the
    /// step is finite, so that no examples are lost. Under another precision, skips the step as
    /// [`Skip`](Self::Skip) does.
    LowerScale,
    /// Restores weights, their averages, optimizer state and schedule from the last copy that the
    /// trainer made (see [`keep_good_every_n_steps`](RecoveryConfig::keep_good_every_n_steps)), and
    /// continues with the next examples. A schedule that counts epochs does not go back. If the
    /// same copy is restored twice without an applied step in between, the run ends. Checkpoints
    /// contain the copy, so that a resumed run goes back to the same state.
    RestoreLastGood,
    /// Continues the run in `bf16-mixed`. This is allowed only for a run in `16-mixed`.
    FallBackToBf16,
    /// Ends the run with an error that names the cause.
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

/// The lowest allowed loss scale, and what happens when the scale falls below it. PyTorch has no
/// such limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScaleFloor {
    /// The lowest loss scale with which training continues (fairseq's `min_loss_scale`).
    pub min_scale: f64,
    /// What happens when the loss scale falls below `min_scale`.
    pub then: AtFloor,
}

impl Default for ScaleFloor {
    fn default() -> Self {
        Self { min_scale: 1e-4, then: AtFloor::Halt }
    }
}

/// What happens when the loss scale falls below the lowest allowed scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AtFloor {
    /// Ends the run with an error.
    #[default]
    Halt,
    /// Keeps the loss scale at the lowest allowed scale and reports this in an event.
    Warn,
    /// Continues the run in `bf16-mixed`.
    FallBackToBf16,
}

named!(AtFloor, "policy", {
    Halt => "halt",
    Warn => "warn",
    FallBackToBf16 => "fall-back-to-bf16",
});
