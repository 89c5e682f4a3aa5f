//! Finds the first value that was not finite in a step.

use super::{micro_batches::Examples, observers::Emit, rollback::StateBackup, state::StepState};
use crate::{
    LightningModule, Result,
    event::Event,
    nn,
    provenance::{self, Provenance, Replay},
};

/// Repeats a step with the same random numbers and checks all modules, to find the first value that
/// is not finite. If every value is finite in the repetition, emits a note that says so. Does not
/// change the state of the training.
pub(super) fn explain(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    examples: &Examples,
    scale: f64,
    emit: &mut Emit<'_>,
) -> Result<Option<Provenance>> {
    let backup = StateBackup::begin(model, state.policy.device)?;
    // The gradients of the skipped step are not needed any more.
    state.optim.zero_grad()?;
    state.rollback.restore_random()?;
    let parameters = nn::parameters(model);
    let replay = Replay {
        policy: state.policy,
        context: state.new_context(),
        scale,
        batches: examples.in_parts(model, state.parts)?,
        global_step: state.global_step(),
        parameters: &parameters,
    };
    let found = replay.find(model);
    backup.end(model)?;
    let (provenance, text) = match found {
        Ok(Some(found)) => return Ok(Some(found)),
        Ok(None) => (None, provenance::unexplained(None)),
        Err(error) => (None, provenance::unexplained(Some(&error))),
    };
    emit(Event::Note { text })?;
    Ok(provenance)
}
