//! Reports the batches of a step to hooks, callbacks and subscribers.

use tch::Tensor;

use super::{micro_batches::Examples, observers::Observers, state::StepState};
use crate::{
    LightningModule, Result,
    callback::Action,
    event::{Event, Position},
    precision::StepOutcome,
};

/// The notes that a run writes at most once, and whether it has written them.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Whether the trainer has checked if a note on accumulated gradients is needed.
    pub(super) windows: bool,
    /// Whether a note was written about a step in which no target counts in the loss.
    pub(super) left_out: bool,
    /// Whether a note about lost updates of 16-bit weights was written.
    pub(super) lost_updates: bool,
}

/// Calls the hooks and callbacks that run after a batch, and emits the batch's events. `at` is the
/// index of the batch in the step. `outcome` is the outcome of the step after its last batch, and
/// `None` after earlier batches.
pub(super) fn end_batch(
    state: &StepState<'_>,
    model: &mut dyn LightningModule,
    observers: &mut Observers<'_, '_>,
    (examples, at): (&Examples, usize),
    loss: &Tensor,
    outcome: Option<&StepOutcome>,
) -> Result<Vec<Action>> {
    let Observers { callbacks, emit, log, .. } = observers;
    let Position { epoch, batch } = examples.position(at);
    let mut hook = state.hook(epoch, log);
    model.on_train_batch_end(loss, outcome, &mut hook)?;
    let actions = callbacks.each(|callback| callback.on_train_batch_end(outcome, &mut hook))?;
    let global_step = state.global_step();
    let (scale, done) = (state.optim.scale(), state.length.done(epoch, batch, global_step));
    let examples = examples.batches[at].len();
    emit(Event::Batch { epoch, batch, global_step, examples, scale, done })?;
    for (name, media) in log.take_media() {
        emit(Event::Media { global_step, name, media })?;
    }
    if outcome.is_some() && state.is_logged() {
        emit(Event::Logged { global_step, values: log.step_values()? })?;
    }
    Ok(actions)
}
