//! Reports the batches of a step.

use tch::Tensor;

use super::{observers::Observers, state::StepState};
use crate::{
    LightningModule, Result,
    callback::Action,
    event::{Event, Position},
    precision::StepOutcome,
};

/// Calls the hooks that follow a batch, with the step's outcome after its last batch, and reports the
/// batch.
pub(super) fn end_batch(
    state: &StepState<'_>,
    model: &mut dyn LightningModule,
    observers: &mut Observers<'_, '_>,
    position: Position,
    loss: &Tensor,
    outcome: Option<&StepOutcome>,
) -> Result<Vec<Action>> {
    let Observers { callbacks, emit, log, .. } = observers;
    let Position { epoch, batch } = position;
    let mut hook = state.hook(epoch, log);
    model.on_train_batch_end(loss, outcome, &mut hook)?;
    let actions = callbacks.each(|callback| callback.on_train_batch_end(outcome, &mut hook))?;
    let global_step = state.global_step();
    emit(Event::Batch { epoch, batch, global_step })?;
    if outcome.is_some() && state.is_logged() {
        emit(Event::Logged { global_step, values: log.step_values()? })?;
    }
    Ok(actions)
}
