//! Runs training steps operator by operator (eagerly), without CUDA graphs.

use std::rc::Rc;

use tch::Tensor;

use super::{
    explain_non_finite::explain,
    first_gradients,
    invariants::Moment,
    micro_batches::{Examples, halves},
    observers::{Emit, Observers},
    recovery::{Next, recover},
    report::end_batch,
    state::StepState,
};
use crate::{
    Error, LightningModule, LossScope, Result,
    callback::Action,
    data::AnyBatch,
    event::{Event, Position, Recovery},
    ffi,
    log::{Interval, Log},
    loss::WatchedProbabilities,
    nn::{self, Role},
    precision::StepOutcome,
    probe::Products,
};

/// Runs one optimizer step: forward and backward → unscale → clip → apply → report. If the step is
/// skipped, undoes its changes, and repeats the step if the recovery policy requires it.
pub(super) fn step(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    observers: &mut Observers<'_, '_>,
    examples: &Examples,
) -> Result<Vec<Action>> {
    let mut actions = Vec::new();
    let mut ran = Ran::default();
    let last = examples.batches.len() - 1;
    note_windows(state, model, examples, observers.emit)?;
    state.begin(model)?;
    observers.invariants.at(Moment::GradientsCleared, state, model, 0)?;
    let casts = state.keep_casts()?;
    for at in 0..=last {
        forward_backward(state, model, observers, examples, at, &mut ran)?;
        if at < last {
            let (batch, loss) = ((examples, at), &ran.losses[at]);
            actions.extend(end_batch(state, model, observers, batch, loss, None)?);
        }
    }
    // The cached casts of the weights are valid only until the optimizer changes the weights.
    drop(casts);
    let outcome = loop {
        let scale = state.optim.scaler.scale_value();
        let gradients = state.unscale_and_clip(model, observers, examples.start.epoch)?;
        let before = state.weights_before()?;
        let scaler = state.optim.scaler.state();
        let outcome = state.apply(gradients)?;
        let leaves_out = outcome != StepOutcome::Applied
            && !state.config.recovery.skipped_step_advances
            && examples.count_nothing(model)?;
        let next = match &outcome {
            StepOutcome::Applied => {
                state.count_applied(model)?;
                if let Some(before) = before
                    && let Some(text) = state.lost_updates(&before)?
                {
                    (observers.emit)(Event::Note { text })?;
                }
                Next::GoOn
            }
            StepOutcome::Skipped { .. } if leaves_out => {
                state.optim.scaler.return_to(scaler)?;
                leave_out(state, model, examples, observers.emit)?;
                Next::GoOn
            }
            StepOutcome::Skipped { culprit } => {
                let culprit = culprit.clone();
                let losses = examples.counting(&ran.losses);
                skip(state, model, examples, &losses, scale, culprit, observers.emit)?
            }
        };
        state.report_scale(scale, observers.emit)?;
        match next {
            Next::GoOn => break outcome,
            Next::Again => ran = run_again(state, model, examples, examples.batches.len())?,
        }
    };
    match &outcome {
        StepOutcome::Skipped { .. } if !state.config.recovery.skipped_step_advances => {
            observers.log.merge_left_out(ran.log)?;
        }
        _ => observers.log.merge(ran.log)?,
    }
    state.profiler.stop();
    let (batch, loss) = ((examples, last), &ran.losses[last]);
    actions.extend(end_batch(state, model, observers, batch, loss, Some(&outcome))?);
    Ok(actions)
}

/// The losses and logged values of the forward and backward passes over a step's batches.
#[derive(Default)]
struct Ran {
    /// The losses of the batches, in order.
    losses: Vec<Tensor>,
    /// The values that the batches logged.
    log: Log,
}

/// Emits a note, once per run, if the accumulated gradients of several batches may differ from the
/// gradient of one large batch. They differ if the loss depends on the batch as a whole. They may
/// differ if the model computes its own loss and does not declare over what this loss is a mean.
fn note_windows(
    state: &mut StepState<'_>,
    model: &dyn LightningModule,
    examples: &Examples,
    emit: &mut Emit<'_>,
) -> Result<()> {
    if examples.batches.len() < 2 || std::mem::replace(&mut state.told.windows, true) {
        return Ok(());
    }
    match model.loss_scope() {
        LossScope::Examples => return Ok(()),
        LossScope::Batch => {
            let text = "the loss depends on each batch as a whole: a step over several batches \
                        averages their losses, which differs from the loss of one batch with all \
                        their examples; if you need that loss, use a larger batch with a memory \
                        budget";
            return emit(Event::Note { text: text.to_owned() });
        }
        LossScope::Unknown => {}
    }
    if examples.batches.iter().any(|batch| batch.has_weights()) {
        return Ok(());
    }
    for batch in &examples.batches {
        if !batch.shallow_clone().noting_ignored()?.is_complete() {
            let text = "some targets are -100, and the model computes its own loss: if this loss \
                        ignores them, declare the weight of a batch, as in `counts = |target| \
                        …`; without this declaration, the batches of a step are weighted by \
                        their numbers of examples";
            return emit(Event::Note { text: text.to_owned() });
        }
    }
    let text = "the model computes its own loss, and a step over several batches weights their \
                losses by their numbers of examples: declare `of = examples` if the loss is a mean \
                over examples, or the loss's weight, as in `counts = |target| …`, if it is a mean \
                over something else, such as words that are not padding";
    emit(Event::Note { text: text.to_owned() })
}

/// Runs the forward and backward pass over the batch with the index `at` in the step. Adds the new
/// gradients to the parameters' gradients, and the loss and logged values to `ran`. In the first
/// batch of the run, checks the dtypes. If the batch does not fit into memory, splits the batch
/// into more parts and runs it again.
fn forward_backward(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    observers: &mut Observers<'_, '_>,
    examples: &Examples,
    at: usize,
    ran: &mut Ran,
) -> Result<()> {
    let probe = (!state.probed).then(|| Rc::new(Products::default()));
    let probabilities = probe.is_some().then(WatchedProbabilities::start);
    let (batch, share) = (&examples.batches[at], examples.shares[at]);
    let index = examples.position(at).batch;
    let mut halved = false;
    let is_last = at + 1 == examples.batches.len();
    let is_logged = is_last && state.logs_after(0);
    let (loss, log) = loop {
        let mut log = Log::at(Interval::of(is_logged));
        let mut attempt = || {
            if halved {
                let _ = run_again(state, model, examples, at)?;
            }
            let context = probe.clone().map(|probe| state.new_context().with_dtype_probe(probe));
            let mut passes = match &context {
                Some(context) => state.passes_in(context),
                None => state.passes(),
            };
            passes.is_first = context.is_some();
            passes.run(model, batch, share, index, &mut log)
        };
        match attempt() {
            Ok(loss) => break (loss, log),
            Err(error) if !error.is_out_of_memory() => {
                // Adds the position of the batch to the error, unless it is the first batch of the
                // run: the cause of an error in the first batch is usually the model and not the
                // batch.
                let position = examples.position(at);
                return Err(match position == Position::default() {
                    true => error,
                    false => {
                        let Position { epoch, batch } = position;
                        error.in_batch(&format!("batch {batch} of epoch {epoch}"))
                    }
                });
            }
            Err(error) => {
                halve(state, model, error, batch, observers.emit)?;
            }
        }
        halved = true;
    };
    state.does_more |= log.interval().was_asked();
    ran.log.merge(log)?;
    if let Some(probe) = probe {
        state.report_dtypes(model, &probe, &loss, observers.emit)?;
        let probabilities = probabilities.and_then(|watch| watch.note());
        for text in first_gradients::missing(model).into_iter().chain(probabilities) {
            (observers.emit)(Event::Note { text })?;
        }
    }
    ran.losses.push(loss);
    Ok(())
}

/// Doubles the number of parts per batch if `error` is an out-of-memory error and the batch that
/// caused it can be split further. Returns `error` otherwise.
fn halve(
    state: &mut StepState<'_>,
    model: &dyn LightningModule,
    error: Error,
    batch: &AnyBatch,
    emit: &mut Emit<'_>,
) -> Result<()> {
    let (scope, remedy) = (model.loss_scope(), "choose a smaller batch, or a memory budget");
    if !halves(&state.config.memory, &error, batch, state.parts, scope, remedy)? {
        return Err(error);
    }
    let parts = 2 * state.parts;
    if scope == LossScope::Unknown && state.parts == 1 {
        emit(Event::Note {
            text: "each batch is now split into parts, and the model computes its own loss: if this \
                   loss compares the examples of a batch with each other, as a contrastive loss does, \
                   the mean of the losses of the parts is not the batch's loss; declare `of = batch` or \
                   `of = examples`, or set memory.micro_batching to false"
                .to_owned(),
        })?;
    }
    if state.parts == 1
        && let Some(norm) = keeps_batch_statistics(model)
    {
        emit(Event::Note {
            text: format!(
                "{norm} keeps running statistics of batches, and each batch is now split into parts: \
                 the statistics, and the output of a batch norm, are computed from each part alone, so \
                 that the step differs from a step on the whole batch; choose a smaller batch or a memory \
                 budget, or set memory.micro_batching to false"
            ),
        })?;
    }
    state.optim.zero_grad()?;
    state.set_parts(parts);
    if state.policy.device.is_cuda() {
        ffi::cuda_empty_cache()?;
    }
    state.report_recovery(Recovery::MicroBatches { parts }, emit)
}

/// Returns the name of the first module that keeps running statistics of batches, as batch norm
/// does.
fn keeps_batch_statistics(model: &dyn LightningModule) -> Option<String> {
    nn::named_tensors(model).into_iter().find_map(|(name, _, role)| {
        let module = name.strip_suffix("running_mean").filter(|_| role == Role::Buffer)?;
        Some(match module.strip_suffix('.') {
            Some(module) => format!("`{module}`"),
            None => "the model".to_owned(),
        })
    })
}

/// Runs the first `batches` batches of the step again, with the same random numbers. Their
/// gradients replace those that the step had accumulated.
fn run_again(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    examples: &Examples,
    batches: usize,
) -> Result<Ran> {
    state.optim.zero_grad()?;
    state.rollback.restore(model)?;
    let batches = examples.batches.iter().zip(&examples.shares).take(batches);
    let mut ran = Ran::default();
    let last = examples.batches.len() - 1;
    let is_logged = state.logs_after(0);
    for (at, (batch, share)) in batches.enumerate() {
        let mut log = Log::at(Interval::of(is_logged && at == last));
        let index = examples.position(at).batch;
        ran.losses.push(state.passes().run(model, batch, *share, index, &mut log)?);
        ran.log.merge(log)?;
    }
    Ok(ran)
}

/// Ends a step in which all targets are ignored or have the weight 0, so that its loss is a mean
/// over nothing (NaN). Such a step does not count as skipped, because nothing has overflowed.
/// Restores the state before the step. The first time in a run, emits a note.
fn leave_out(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    examples: &Examples,
    emit: &mut Emit<'_>,
) -> Result<()> {
    state.rollback.restore(model)?;
    if std::mem::replace(&mut state.told.left_out, true) {
        return Ok(());
    }
    let Position { epoch, batch } = examples.position(0);
    let text = format!(
        "no target of the step at batch {batch} of epoch {epoch} counts in the loss (all are ignored, or \
         their weights are 0): such a step changes nothing, and is not counted as skipped"
    );
    emit(Event::Note { text })
}

/// Counts a skipped step, searches for its cause, reports the step, restores the state before its
/// forward pass, and decides which examples the next step runs on.
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
