//! What is done when a step is not finite, or its loss scale falls too low.

use crate::{Error, Result, named::named, precision::Precision};
use serde::{Deserialize, Serialize};

/// What happens to steps whose gradients are not finite, and when the loss scale is too low.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveryConfig {
    /// What is done about a step whose gradients are not finite.
    pub on_non_finite: NonFinite,
    /// Skipped steps in a row after which skipping is no longer an answer.
    pub max_consecutive_skips: u64,
    /// Applied steps between two states kept for [`NonFinite::RestoreLastGood`].
    pub keep_good_every_n_steps: u64,
    /// How low the loss scale may fall.
    pub scale_floor: ScaleFloor,
    /// Whether a skipped step is run once more, observed, to name the module where it began.
    /// Other steps pay nothing.
    pub provenance: bool,
    /// Whether a skipped step moves the schedule and the step count, and leaves what its forward pass
    /// has changed (batch statistics, the model's own state, the random generator), as in Lightning.
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
            // Below, the scale's reciprocal is infinite and unscaling ruins finite gradients.
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

    /// Whether a step may run again.
    pub(super) fn runs_again(&self) -> bool {
        matches!(self.on_non_finite, NonFinite::LowerScale | NonFinite::FallBackToBf16)
            || self.scale_floor.then == AtFloor::FallBackToBf16
    }
}

/// What is done about a step whose gradients are not finite. It is never applied, and its cause
/// is looked for.
///
/// A finite loss whose scaled gradients overflow is the scaler's own affair: under `16-mixed` the
/// step is left out and the scale backs off, whatever is chosen here. The choice decides about
/// the rest: a forward pass that is not finite, any such step under the other precisions, and
/// more than [`max_consecutive_skips`](RecoveryConfig::max_consecutive_skips) in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NonFinite {
    /// Does not look, as Lightning does not: NaN reaches the weights. Saves a pass over the
    /// gradients and one host read a step; `16-mixed` looks anyway.
    Ignore,
    /// Leaves the step out; too many in a row end the run.
    #[default]
    Skip,
    /// Under `16-mixed`, runs the same examples again at the lower scale until they fit, so that
    /// none are lost; otherwise as [`Skip`](Self::Skip).
    LowerScale,
    /// Goes back to the weights, optimizer and schedule of the last good state, kept every
    /// [`keep_good_every_n_steps`](RecoveryConfig::keep_good_every_n_steps), and on with
    /// the next examples. Coming back to one state twice without a step between ends the run.
    RestoreLastGood,
    /// Goes on in `bf16-mixed`; from `16-mixed` only.
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

/// How low the loss scale may fall; PyTorch has no floor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScaleFloor {
    /// The lowest scale that training goes on with; fairseq's `min_loss_scale`.
    pub min_scale: f64,
    /// What is done below.
    pub then: AtFloor,
}

impl Default for ScaleFloor {
    fn default() -> Self {
        Self { min_scale: 1e-4, then: AtFloor::Halt }
    }
}

/// What is done when the scale falls below its floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AtFloor {
    /// Ends the run with an error.
    #[default]
    Halt,
    /// Holds the scale at the floor and says so.
    Warn,
    /// Goes on in `bf16-mixed`.
    FallBackToBf16,
}

named!(AtFloor, "policy", {
    Halt => "halt",
    Warn => "warn",
    FallBackToBf16 => "fall-back-to-bf16",
});
