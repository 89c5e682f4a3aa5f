//! Runs the forward and backward pass over one batch.

use tch::Tensor;

use super::{
    first_gradients::none_yet,
    micro_batches::{no_examples, split},
    profile::Profiler,
};
use crate::{
    LightningModule, Result, Step,
    data::AnyBatch,
    event::Phase,
    ffi::WatchedBroadcasts,
    log::Log,
    loss,
    nn::Context,
    precision::{GradScaler, Policy},
    random::Seeding,
    tch_panics::returned,
};

/// The settings and objects that the forward and backward passes over a batch use.
pub(super) struct Passes<'p> {
    pub(super) policy: Policy,
    pub(super) context: &'p Context,
    pub(super) scaler: &'p GradScaler,
    /// The number of parts into which a batch is split.
    pub(super) parts: i64,
    pub(super) global_step: u64,
    pub(super) seeding: &'p mut Seeding,
    /// Whether the next pass is the first pass of the run, so that no parameter has a gradient yet.
    pub(super) is_first: bool,
    pub(super) profiler: &'p mut Profiler,
}

impl Passes<'_> {
    /// Runs the forward and backward pass over a batch. Multiplies the loss by `share`, the weight
    /// of this batch in the mean over the step, and adds the gradients to those of the parameters.
    /// Returns the loss before this multiplication, detached from the autograd graph. If the batch
    /// is split, runs its parts one after the other and returns the weighted mean of their losses.
    pub(super) fn run(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        share: f64,
        index: i64,
        log: &mut Log,
    ) -> Result<Tensor> {
        let Some(parts) = split(model, batch, self.parts)? else {
            return self.run_part(model, batch, share, index, log);
        };
        let mut whole: Option<Tensor> = None;
        for (part, fraction) in &parts {
            let loss = self.run_part(model, part, share * fraction, index, log)?;
            // A part whose targets are all ignored has a loss of NaN (a mean over nothing), which
            // must not enter the sum.
            let loss = match *fraction {
                0.0 => loss.f_zeros_like()?,
                fraction => loss.f_mul_scalar(fraction)?,
            };
            whole = Some(match whole {
                None => loss,
                Some(sum) => sum.f_add(&loss)?,
            });
        }
        whole.ok_or_else(no_examples)
    }

    fn run_part(
        &mut self,
        model: &mut dyn LightningModule,
        part: &AnyBatch,
        share: f64,
        index: i64,
        log: &mut Log,
    ) -> Result<Tensor> {
        let value = {
            let _autocast = self.policy.autocast()?;
            let _products = self.context.watch_products()?;
            WatchedBroadcasts::note_batch(part.of_examples())?;
            let mut step = Step::new(self.context, log, index as usize, self.global_step);
            let run = || returned(|| model.training_step(part, &mut step));
            self.seeding.watch(self.policy.device, run)??
        };
        if std::mem::take(&mut self.is_first) {
            none_yet(model)?;
        }
        self.profiler.lap(Phase::Forward)?;
        let scaled = match share {
            // A part in which no target counts contributes no gradient.
            0.0 => None,
            1.0 => Some(self.scaler.scale(&value)?),
            share => Some(self.scaler.scale(&value.f_mul_scalar(share)?)?),
        };
        if let Some(scaled) = scaled {
            scaled.backward().map_err(loss::in_backward)?;
        }
        self.profiler.lap(Phase::Backward)?;
        Ok(value.f_detach()?)
    }
}
