//! Steps that run kernel by kernel.

use std::rc::Rc;

use tch::Tensor;

use super::{
    examples::Examples,
    explain::explain,
    observers::{Emit, Observers},
    recovery::{Next, recover},
    report::end_batch,
    state::StepState,
};
use crate::{
    Error, LightningModule, Result,
    callback::Action,
    event::{Event, Recovery},
    ffi,
    log::Log,
    precision::StepOutcome,
    probe::Products,
};

/// One optimizer step: forward and backward → unscale → clip → apply → report. A step that is skipped
/// changes nothing, and runs again where the recovery asks for it.
pub(super) fn step(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    observers: &mut Observers<'_, '_>,
    examples: &Examples,
) -> Result<Vec<Action>> {
    let mut actions = Vec::new();
    let mut losses = Vec::with_capacity(examples.batches.len());
    let last = examples.batches.len() - 1;
    state.begin(model)?;
    let casts = state.keep_casts()?;
    for at in 0..=last {
        losses.push(forward_backward(state, model, observers, examples, at)?);
        if at < last {
            let position = examples.position(at);
            actions.extend(end_batch(state, model, observers, position, &losses[at], None)?);
        }
    }
    // The next change of the weights makes them invalid.
    drop(casts);
    let outcome = loop {
        let scale = state.optim.scaler.scale_value();
        let gradients = state.unscale_and_clip(model, observers, examples.start.epoch)?;
        let outcome = state.apply(gradients)?;
        let next = match &outcome {
            StepOutcome::Applied => {
                state.count_applied(model)?;
                Next::GoOn
            }
            StepOutcome::Skipped { culprit } => {
                let culprit = culprit.clone();
                skip(state, model, examples, &losses, scale, culprit, observers.emit)?
            }
        };
        state.report_scale(scale, observers.emit)?;
        match next {
            Next::GoOn => break outcome,
            Next::Again => run_again(state, model, examples, examples.batches.len())?,
        }
    };
    state.profiler.stop();
    let position = examples.position(last);
    actions.extend(end_batch(state, model, observers, position, &losses[last], Some(&outcome))?);
    Ok(actions)
}

/// Adds the gradients of the batch at this index and returns its loss. The very first batch is probed for
/// the dtypes it runs in. A batch that does not fit into memory runs in more parts.
fn forward_backward(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    observers: &mut Observers<'_, '_>,
    examples: &Examples,
    at: usize,
) -> Result<Tensor> {
    let probe = (!state.probed).then(|| Rc::new(Products::default()));
    let (batch, share) = (&examples.batches[at], examples.shares[at]);
    let index = examples.position(at).batch;
    let mut halved = false;
    let (loss, log) = loop {
        let mut log = Log::default();
        let mut attempt = || {
            if halved {
                run_again(state, model, examples, at)?;
            }
            let context = probe.clone().map(|probe| state.new_context().with_dtype_probe(probe));
            let mut passes = match &context {
                Some(context) => state.passes_in(context),
                None => state.passes(),
            };
            passes.run(model, batch, share, index, &mut log)
        };
        match attempt() {
            Ok(loss) => break (loss, log),
            Err(error) => halve(state, error, batch.len(), observers.emit)?,
        }
        halved = true;
    };
    observers.log.merge(log)?;
    if let Some(probe) = probe {
        state.report_dtypes(&probe, &loss, observers.emit)?;
    }
    Ok(loss)
}

/// Halves the parts that batches run in, if `error` asks for it and a batch of this length can be halved.
fn halve(state: &mut StepState<'_>, error: Error, length: i64, emit: &mut Emit<'_>) -> Result<()> {
    if !state.config.memory.halves(&error, state.parts, length) {
        return Err(error);
    }
    let parts = 2 * state.parts;
    state.optim.zero_grad()?;
    state.set_parts(parts);
    if state.policy.device.is_cuda() {
        ffi::cuda_empty_cache()?;
    }
    state.report_recovery(Recovery::MicroBatches { parts }, emit)
}

/// Computes the gradients of the step's first batches anew, with the same random numbers. What they log
/// was logged.
fn run_again(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    examples: &Examples,
    batches: usize,
) -> Result<()> {
    state.optim.zero_grad()?;
    state.rollback.restore(model)?;
    let batches = examples.batches.iter().zip(&examples.shares).take(batches);
    for (index, (batch, share)) in (0..).zip(batches) {
        let _ = state.passes().run(model, batch, *share, index, &mut Log::default())?;
    }
    Ok(())
}

/// Counts, explains and reports a skipped step, takes back what its passes have changed, and decides what
/// follows.
fn skip(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    examples: &Examples,
    losses: &[Tensor],
    scale: f64,
    culprit: Option<String>,
    emit: &mut Emit<'_>,
) -> Result<Next> {
    state.count_skipped();
    let mut skipped = state.skipped(culprit, scale);
    if state.config.recovery.provenance {
        skipped.provenance = explain(state, model, examples, scale, emit)?;
    }
    emit(Event::Skipped(skipped.clone()))?;
    if !state.config.recovery.skipped_step_advances {
        state.rollback.restore(model)?;
    }
    recover(state, model, &skipped, losses, emit)
}
