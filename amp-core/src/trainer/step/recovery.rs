//! Decides what follows a skipped step: the next examples, a repetition, another precision, or the
//! end of the run.

use tch::Tensor;

use super::{micro_batches::are_finite, observers::Emit, state::StepState};
use crate::{
    Error, LightningModule, Result,
    event::{Recovery, Skipped},
    precision::Precision,
    trainer::config::{AtFloor, NonFinite, ScaleFloor},
};

/// The examples on which the next step runs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The step runs on the next examples.
    GoOn,
    /// The step runs again on the same examples.
    Again,
}

/// The trainer's response to a skipped step.
enum Remedy {
    Nothing,
    /// The scaler has lowered the loss scale, and the step runs again on the same examples.
    RunAgain,
    HoldScale(f64),
    RestoreLastGood,
    FallBackToBf16,
    End(Error),
}

/// Decides what follows a skipped step, and executes the decision. `losses` are the losses of the
/// step's batches.
pub(super) fn recover(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    skipped: &Skipped,
    losses: &[Tensor],
    emit: &mut Emit<'_>,
) -> Result<Next> {
    match choose(state, skipped, losses)? {
        Remedy::Nothing => Ok(Next::GoOn),
        Remedy::RunAgain => {
            let scale = state.optim.scaler.scale_value();
            state.report_recovery(Recovery::LoweredScale { scale }, emit)?;
            Ok(Next::Again)
        }
        Remedy::HoldScale(scale) => {
            state.optim.scaler.set_scale(scale)?;
            state.report_recovery(Recovery::HeldScale { scale }, emit)?;
            Ok(Next::GoOn)
        }
        Remedy::RestoreLastGood => {
            restore_last_good(state, model, skipped, emit)?;
            Ok(Next::GoOn)
        }
        Remedy::FallBackToBf16 => {
            // The weights are f32 in 16-mixed and in bf16-mixed, so only the autocast dtype
            // changes.
            state.set_precision(model, Precision::Bf16Mixed)?;
            state.counts.consecutive_skips = 0;
            state.report_recovery(Recovery::FellBack { precision: Precision::Bf16Mixed }, emit)?;
            Ok(Next::Again)
        }
        Remedy::End(error) => Err(error),
    }
}

fn choose(state: &StepState<'_>, skipped: &Skipped, losses: &[Tensor]) -> Result<Remedy> {
    let config = state.config;
    let scaled = state.optim.scaler.is_enabled();
    let ScaleFloor { min_scale, then } = config.recovery.scale_floor;
    if scaled && state.optim.scaler.scale_value() < min_scale {
        return Ok(match then {
            AtFloor::Halt => Remedy::End(fell_below_floor(state, skipped, min_scale)),
            AtFloor::Warn => Remedy::HoldScale(min_scale),
            AtFloor::FallBackToBf16 => Remedy::FallBackToBf16,
        });
    }
    let forward = match &skipped.provenance {
        Some(found) => found.cause.is_forward(),
        None => !are_finite(losses)?,
    };
    let stuck = state.counts.consecutive_skips > config.recovery.max_consecutive_skips;
    Ok(match config.recovery.on_non_finite {
        // The forward pass was finite. Only the scaled gradients overflowed, and the scaler has
        // already lowered the loss scale.
        NonFinite::LowerScale if scaled && !forward && !stuck => Remedy::RunAgain,
        _ if scaled && !forward && !stuck => Remedy::Nothing,
        NonFinite::Ignore => Remedy::Nothing,
        NonFinite::Skip | NonFinite::LowerScale if !stuck => Remedy::Nothing,
        NonFinite::RestoreLastGood => Remedy::RestoreLastGood,
        NonFinite::FallBackToBf16 if state.policy.precision == Precision::F16Mixed => {
            Remedy::FallBackToBf16
        }
        NonFinite::FallBackToBf16 if !stuck => Remedy::Nothing,
        _ => Remedy::End(not_finite(state, skipped)),
    })
}

fn restore_last_good(
    state: &mut StepState<'_>,
    model: &dyn LightningModule,
    skipped: &Skipped,
    emit: &mut Emit<'_>,
) -> Result<()> {
    let applied = state.counts.applied;
    // A copy is restored a second time only if a step was applied since it was last restored.
    // Otherwise the same steps would fail again.
    let Some(good) = state.good.as_mut().filter(|good| good.helps(applied)) else {
        return Err(not_finite(state, skipped));
    };
    let global_step = good.restore(model, &mut state.optim, state.average.as_mut())?;
    state.counts.applied = global_step;
    state.counts.consecutive_skips = 0;
    state.report_recovery(Recovery::Restored { global_step }, emit)
}

fn fell_below_floor(state: &StepState<'_>, skipped: &Skipped, min_scale: f64) -> Error {
    Error::Scaler(format!(
        "the loss scale fell to {:e}, below the lowest allowed scale of {min_scale:e}: {} of {} \
         steps were skipped, the last because {}; lower the learning rate or clip the gradients",
        state.optim.scaler.scale_value(),
        state.counts.skipped,
        state.counts.attempts,
        skipped.cause(),
    ))
}

fn not_finite(state: &StepState<'_>, skipped: &Skipped) -> Error {
    let row = match state.counts.consecutive_skips {
        0 | 1 => String::new(),
        n => format!(" ({n} skipped steps in a row)"),
    };
    Error::NonFinite(format!(
        "optimizer step {} under {} has a gradient or a loss that is not finite{row}: {}",
        skipped.attempt,
        state.policy.precision,
        skipped.cause(),
    ))
}
