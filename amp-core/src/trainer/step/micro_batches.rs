//! The batches of one optimizer step, and the parts (micro-batches) into which they are split.

use tch::Tensor;

use crate::{
    Error, LightningModule, LossScope, Result, data::AnyBatch, event::Position,
    provenance::ReplayedBatch, trainer::config::MemoryConfig,
};

/// The batches of one optimizer step.
pub(in crate::trainer) struct Examples {
    /// The position, within the run, of the step's first batch.
    pub(super) start: Position,
    pub(in crate::trainer) batches: Vec<AnyBatch>,
    /// The factor by which the loss of each batch is multiplied. The sum of the multiplied losses
    /// is a mean over all examples of the step.
    pub(super) shares: Vec<f64>,
    /// Whether a CUDA graph has skipped the step on these examples because a value was not finite.
    /// The step is then repeated without a graph.
    pub(super) skipped: bool,
}

impl Examples {
    /// Returns the number of bytes of the batches' tensors.
    pub(in crate::trainer) fn bytes(&self) -> u64 {
        self.batches.iter().map(AnyBatch::bytes).sum()
    }

    /// Creates the examples of a step from its batches. The factor of each batch is proportional to
    /// the [weight](LightningModule::loss_weight) that the model gives to the batch's loss.
    pub(in crate::trainer) fn new(
        model: &dyn LightningModule,
        start: Position,
        batches: Vec<AnyBatch>,
    ) -> Result<Self> {
        let shares = match batches.as_slice() {
            // A single batch always has the factor 1, so its weight is not read from the device.
            [_] => vec![1.0],
            several => shares(model, several)?,
        };
        Ok(Self { start, batches, shares, skipped: false })
    }

    /// Returns the position, within the run, of this step's batch with the index `at`.
    pub(super) fn position(&self, at: usize) -> Position {
        Position { batch: self.start.batch + at as i64, ..self.start }
    }

    /// Returns the index, within the epoch, of the first batch after this step.
    pub(super) fn next_batch(&self) -> i64 {
        self.start.batch + self.batches.len() as i64
    }

    /// Returns the first part of the first batch, if each batch is split into `parts` parts.
    pub(super) fn first_part(&self, parts: i64) -> Result<AnyBatch> {
        let Some(batch) = self.batches.first() else { return Err(no_examples()) };
        match batch.split(parts)? {
            None => Ok(batch.shallow_clone()),
            Some(parts) => parts.into_iter().next().ok_or_else(no_examples),
        }
    }

    /// Returns the parts of all batches, in the order in which a step runs them.
    pub(super) fn in_parts(
        &self,
        model: &dyn LightningModule,
        parts: i64,
    ) -> Result<Vec<ReplayedBatch>> {
        let mut all = Vec::new();
        for (at, (batch, share)) in self.batches.iter().zip(&self.shares).enumerate() {
            let index = self.position(at).batch as usize;
            let part = |batch, share| ReplayedBatch { batch, share, index };
            match split(model, batch, parts)? {
                None => all.push(part(batch.shallow_clone(), *share)),
                Some(parts) => {
                    all.extend(parts.into_iter().map(|(batch, of)| part(batch, share * of)));
                }
            }
        }
        Ok(all)
    }

    /// Returns whether no target of the step counts in the loss, because all are ignored or masked.
    /// The loss is then a mean over nothing (NaN). Reads the weights of the batches from the
    /// device.
    pub(super) fn count_nothing(&self, model: &dyn LightningModule) -> Result<bool> {
        for batch in &self.batches {
            if model.loss_weight(batch)? != 0.0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the losses of those batches whose factor is above 0.
    pub(super) fn counting(&self, losses: &[Tensor]) -> Vec<Tensor> {
        let pairs = losses.iter().zip(&self.shares).filter(|(_, share)| **share > 0.0);
        pairs.map(|(loss, _)| loss.shallow_clone()).collect()
    }
}

/// Splits a batch into at most `parts` parts, each with the factor by which its loss is multiplied.
/// Returns `None` if the batch is not split.
pub(super) fn split(
    model: &dyn LightningModule,
    batch: &AnyBatch,
    parts: i64,
) -> Result<Option<Vec<(AnyBatch, f64)>>> {
    let Some(parts) = batch.split(parts)? else { return Ok(None) };
    let shares = shares(model, &parts)?;
    Ok(Some(parts.into_iter().zip(shares).collect()))
}

/// Returns for each batch the factor by which its loss is multiplied in the mean over all batches.
fn shares(model: &dyn LightningModule, batches: &[AnyBatch]) -> Result<Vec<f64>> {
    let weights = batches.iter().map(|batch| model.loss_weight(batch));
    let weights = weights.collect::<Result<Vec<_>>>()?;
    if let Some(bad) = weights.iter().find(|weight| !(**weight >= 0.0 && weight.is_finite())) {
        return Err(Error::config(format!(
            "the loss of a batch has the weight {bad}, but weights must be finite and at least 0: \
             check the data's weights"
        )));
    }
    let all: f64 = weights.iter().sum();
    if all > 0.0 {
        return Ok(weights.into_iter().map(|weight| weight / all).collect());
    }
    // All weights are 0, for example because every target is ignored. With equal factors the loss
    // is a mean over no targets (NaN), as for one large batch.
    Ok(vec![1.0 / batches.len() as f64; batches.len()])
}

/// Returns whether every loss is finite. Reads the losses from the device.
pub(super) fn are_finite(losses: &[Tensor]) -> Result<bool> {
    for loss in losses {
        if loss.f_isfinite()?.f_int64_value(&[])? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the error for a batch without examples.
pub(super) fn no_examples() -> Error {
    Error::config("a batch contains no examples")
}

/// Returns whether a batch that ran in `parts` parts and failed with `error` should run again in
/// twice as many parts. `scope` says over what the batch's loss is a mean.
///
/// # Errors
/// When the batch does not fit into memory and must not run in parts. In the error, `remedy` says
/// how to solve this.
pub(in crate::trainer) fn halves(
    memory: &MemoryConfig,
    error: &Error,
    batch: &AnyBatch,
    parts: i64,
    scope: LossScope,
    remedy: &str,
) -> Result<bool> {
    // A batch that cannot be split has run as one part.
    let parts = if batch.is_divisible() { parts } else { 1 };
    if !memory.halves(error, parts, batch.len()) {
        return Ok(false);
    }
    let why = "a batch does not fit into memory and would have to run in parts";
    batch.check_divisible(why, remedy)?;
    match scope {
        LossScope::Batch => Err(Error::config(format!(
            "{why}, but its loss depends on the batch as a whole: {remedy}"
        ))),
        LossScope::Examples | LossScope::Unknown => Ok(true),
    }
}
