//! Runs training steps that the model executes itself (manual optimization).

use std::rc::Rc;

use tch::Tensor;

use super::{
    invariants::Moment,
    micro_batches::Examples,
    observers::Observers,
    recovery::{Next, recover},
    report::end_batch,
    state::StepState,
};
use crate::{
    Error, LightningModule, Result,
    callback::Action,
    event::Event,
    ffi::WatchedBroadcasts,
    log::{Interval, Log},
    loss::WatchedProbabilities,
    module::{Done, ManualStep},
    precision::StepOutcome,
    probe::Products,
};

/// Lets the model execute the step, which consists of a single batch.
pub(super) fn step(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    observers: &mut Observers<'_, '_>,
    examples: &Examples,
) -> Result<Vec<Action>> {
    if state.optim.drop_gradients()? {
        observers.invariants.at(Moment::GradientsCleared, state, model, 0)?;
    }
    state.begin_changes();
    let (loss, outcome) = manual_step(state, model, observers, examples)?;
    end_batch(state, model, observers, (examples, 0), &loss, outcome.as_ref())
}

/// Executes the model's `manual_step`. Returns the loss of its last backward pass, and whether the
/// step was applied or skipped. The outcome is `None` if no optimizer has stepped.
fn manual_step(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    observers: &mut Observers<'_, '_>,
    examples: &Examples,
) -> Result<(Tensor, Option<StepOutcome>)> {
    let Observers { emit, log, .. } = observers;
    let scale = state.optim.scaler.scale_value();
    state.lr = state.optim.lr();
    let probe = (!state.probed).then(|| Rc::new(Products::default()));
    let observed = probe.clone().map(|probe| state.new_context().with_dtype_probe(probe));
    let context = observed.as_ref().unwrap_or(&state.context);
    let (policy, global_step) = (state.policy, state.global_step());
    let index = examples.start.batch as usize;
    let mut own = Log::at(Interval::of(state.logs_after(0)));
    let mut step = ManualStep::new(policy, context, &mut own, &mut state.optim, index, global_step);
    let batch = &examples.batches[0];
    WatchedBroadcasts::note_batch(batch.of_examples())?;
    let probabilities = probe.is_some().then(WatchedProbabilities::start);
    model.manual_step(batch, &mut step)?;
    let Done { loss, outcomes, accumulated } = step.done();
    let drops = loss.is_some() && outcomes.is_empty() && !accumulated;
    let loss = loss.unwrap_or_else(|| Tensor::from(0.0));
    if let Some(probe) = probe {
        state.report_dtypes(model, &probe, &loss, *emit)?;
        if let Some(text) = probabilities.and_then(|watch| watch.note()) {
            emit(Event::Note { text })?;
        }
    }
    if state.optim.scaler.is_used() {
        state.optim.scaler.update()?;
    }
    if drops && !std::mem::replace(&mut state.optim.has_dropped_gradients, true) {
        let text = format!(
            "in batch {index} a backward pass ran but no optimizer stepped, so its gradients are \
             dropped before the next batch: to add the gradients of several batches, call \
             `accumulate` in place of `backward`"
        );
        emit(Event::Note { text })?;
    }
    if outcomes.is_empty() {
        log.merge(own)?;
        state.report_scale(scale, *emit)?;
        state.profiler.stop();
        return Ok((loss, None));
    }
    state.counts.attempts += 1;
    let (mut applied, mut left_out) = (false, None);
    for outcome in outcomes {
        match outcome {
            StepOutcome::Applied => applied = true,
            StepOutcome::Skipped { culprit } => {
                let skipped = state.skipped(culprit, scale);
                emit(Event::Skipped(skipped.clone()))?;
                left_out = Some(skipped);
            }
        }
    }
    let outcome = match left_out {
        Some(skipped) if !applied => {
            state.count_skipped();
            let Next::GoOn = recover(state, model, &skipped, &[], *emit)? else {
                return Err(Error::config("a manual step cannot be run again"));
            };
            log.merge_left_out(own)?;
            StepOutcome::Skipped { culprit: skipped.culprit }
        }
        _ => {
            log.merge(own)?;
            state.count_applied(model)?;
            StepOutcome::Applied
        }
    };
    state.report_scale(scale, *emit)?;
    state.profiler.stop();
    Ok((loss, Some(outcome)))
}
