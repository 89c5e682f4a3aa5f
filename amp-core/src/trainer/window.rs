//! The examples of one optimizer step: forward and scaled backward passes whose gradients add up,
//! in parts where memory is short, and once more where a step is to be explained or repeated.

use std::{rc::Rc, slice};

use tch::Tensor;

use super::{callbacks::Emit, rollback::Aside, step::StepRunner};
use crate::{
    Error, LightningModule, LossScope, Result, Step,
    data::AnyBatch,
    event::{Event, Phase, Recovery},
    ffi,
    log::Log,
    loss,
    nn::{self, Context},
    precision::KeptCasts,
    probe::Products,
    provenance::{self, Provenance, Replay},
};

/// The batches of one optimizer step.
pub(super) struct Examples {
    /// The first one's place in the epoch.
    pub(super) start: i64,
    pub(super) batches: Vec<AnyBatch>,
    /// What each one's loss counts: a mean over the step's examples, whatever the step's length.
    pub(super) shares: Vec<f64>,
}

impl Examples {
    /// Batches that are averaged by what the model's [loss counts](LightningModule::loss_weight) of each.
    pub(super) fn new(
        model: &dyn LightningModule,
        start: i64,
        batches: Vec<AnyBatch>,
    ) -> Result<Self> {
        let shares = match batches.as_slice() {
            // Needs no look at weights on a device.
            [_] => vec![1.0],
            several => shares(model, several)?,
        };
        Ok(Self { start, batches, shares })
    }
}

/// What each batch counts in the mean of all.
fn shares(model: &dyn LightningModule, batches: &[AnyBatch]) -> Result<Vec<f64>> {
    let weights = batches.iter().map(|batch| model.loss_weight(batch));
    let weights = weights.collect::<Result<Vec<_>>>()?;
    let all: f64 = weights.iter().sum();
    if all > 0.0 {
        return Ok(weights.into_iter().map(|weight| weight / all).collect());
    }
    // Nothing counts: the mean of nothing, as in one large batch.
    Ok(vec![1.0 / batches.len() as f64; batches.len()])
}

/// What a step was computed from.
#[derive(Default)]
pub(super) struct Window {
    /// The batches so far, each with the share of its loss.
    batches: Vec<(AnyBatch, f64)>,
    losses: Vec<Tensor>,
    /// What they logged.
    log: Log,
    /// While its batches run, if there are several: the weights are cast once for all.
    casts: Option<KeptCasts>,
}

impl Window {
    /// Its batches in the parts that they run in, each with the share of its loss.
    fn in_parts(&self, model: &dyn LightningModule, parts: i64) -> Result<Vec<(AnyBatch, f64)>> {
        let mut all = Vec::new();
        for (batch, share) in &self.batches {
            match batch.split(parts)? {
                None => all.push((batch.shallow_clone(), *share)),
                Some(parts) => {
                    let shares = shares(model, &parts)?;
                    all.extend(parts.into_iter().zip(shares).map(|(part, of)| (part, share * of)));
                }
            }
        }
        // What counts nothing reaches no gradient.
        all.retain(|(_, share)| *share > 0.0);
        Ok(all)
    }

    /// Whether every batch's loss is finite; reads them from the device.
    pub(super) fn is_loss_finite(&self) -> Result<bool> {
        for (loss, (_, share)) in self.losses.iter().zip(&self.batches) {
            if *share > 0.0 && loss.f_isfinite()?.f_int64_value(&[])? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl StepRunner<'_> {
    /// Forgets the last step's examples and gradients.
    pub(super) fn begin_window(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.optim.zero_grad()?;
        self.rollback.keep(model)?;
        self.window = Window { casts: self.keep_casts()?, ..Window::default() };
        Ok(())
    }

    /// Says once that a loss of the model's own may leave targets out of its mean, which nothing tells here.
    pub(super) fn note_left_out(
        &mut self,
        model: &dyn LightningModule,
        batches: &[AnyBatch],
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let own = model.loss_scope() == LossScope::Unknown;
        if batches.len() < 2 || !own || std::mem::replace(&mut self.looked_for_left_out, true) {
            return Ok(());
        }
        for batch in batches {
            if !batch.has_weights() && !batch.shallow_clone().noting_ignored()?.is_complete() {
                let text = "some targets are -100, and the loss is the model's own: if it leaves them \
                            out, say what it counts, as `counts = |target| …`; batches of a step weigh by \
                            their examples now";
                return emit(Event::Note { text: text.to_owned() });
            }
        }
        Ok(())
    }

    fn keep_casts(&self) -> Result<Option<KeptCasts>> {
        let several = self.config.accumulate_grad_batches > 1 || self.parts > 1;
        let casts = self.policy.precision.autocast().is_some() && several;
        casts.then(KeptCasts::keep).transpose()
    }

    /// The batches have run: what follows changes the weights.
    pub(super) fn end_passes(&mut self) {
        self.window.casts = None;
    }

    /// Makes these batches the step's, to be captured or tried.
    pub(super) fn begin_capture(&mut self, batches: &[AnyBatch], shares: &[f64]) -> Result<()> {
        self.optim.zero_grad()?;
        let batches = batches.iter().map(AnyBatch::shallow_clone).zip(shares.iter().copied());
        let (batches, casts) = (batches.collect(), self.keep_casts()?);
        self.window = Window { batches, casts, ..Window::default() };
        Ok(())
    }

    /// Forgets what was captured or tried, whether or not it can be used.
    pub(super) fn end_capture(&mut self) {
        self.window = Window::default();
        self.optim.scaler.forget();
    }

    /// Adds the gradients of `share` of the batch's loss and returns the loss, detached. The very
    /// first batch is probed for the dtypes it ran in.
    pub(super) fn accumulate(
        &mut self,
        model: &mut dyn LightningModule,
        batch: AnyBatch,
        index: i64,
        share: f64,
        emit: &mut Emit<'_>,
    ) -> Result<Tensor> {
        self.window.batches.push((batch, share));
        let at = self.window.batches.len() - 1;
        let probe = (!self.probed).then(|| Rc::new(Products::default()));
        let mut own = Log::default();
        let observed =
            |own: &Self| probe.clone().map(|probe| own.new_context().with_dtype_probe(probe));
        let context = observed(self);
        let mut outcome = self.forward_backward(model, at, index, &mut own, context);
        while let Err(error) = outcome {
            self.split(model.loss_scope(), error, at, emit)?;
            own = Log::default();
            let context = observed(self);
            outcome = self
                .rerun(model, at)
                .and_then(|_| self.forward_backward(model, at, index, &mut own, context));
        }
        let loss = outcome?;
        self.window.log.merge(own)?;
        self.window.losses.push(loss.shallow_clone());
        if let Some(probe) = probe {
            self.observe(&probe, &loss, emit)?;
        }
        Ok(loss)
    }

    /// Forward and scaled backward over one batch of the window, in as many parts as memory asks
    /// for, in the runner's context unless another is given; returns the batch's loss, detached.
    pub(super) fn forward_backward(
        &mut self,
        model: &mut dyn LightningModule,
        at: usize,
        index: i64,
        log: &mut Log,
        context: Option<Context>,
    ) -> Result<Tensor> {
        let (batch, share) = &self.window.batches[at];
        let parts = batch.split(self.parts)?;
        let (parts, fractions) = match &parts {
            None => (slice::from_ref(batch), vec![1.0]),
            Some(parts) => (parts.as_slice(), shares(model, parts)?),
        };
        let mut whole: Option<Tensor> = None;
        for (part, fraction) in parts.iter().zip(fractions) {
            let loss = {
                let _autocast = self.policy.autocast()?;
                let context = context.as_ref().unwrap_or(&self.context);
                let _products = context.watch_products()?;
                let mut step = Step::new(context, log, index as usize, self.global_step());
                model.training_step(part, &mut step)?
            };
            self.profiler.lap(Phase::Forward)?;
            // The loss of what counts nothing is a mean of nothing, NaN, and reaches no gradient.
            match share * fraction {
                0.0 => {}
                1.0 => self.optim.scaler.scale(&loss)?.backward().map_err(loss::in_backward)?,
                share => {
                    let loss = self.optim.scaler.scale(&loss.f_mul_scalar(share)?)?;
                    loss.backward().map_err(loss::in_backward)?;
                }
            }
            self.profiler.lap(Phase::Backward)?;
            let loss = loss.f_detach()?;
            whole = Some(match whole {
                Some(sum) if fraction == 0.0 => sum,
                None if fraction == 1.0 => loss,
                None if fraction == 0.0 => loss.f_zeros_like()?,
                None => loss.f_mul_scalar(fraction)?,
                Some(sum) => sum.f_add(&loss.f_mul_scalar(fraction)?)?,
            });
        }
        whole.ok_or_else(|| Error::config("a batch without examples"))
    }

    /// What the window's batches logged.
    pub(super) fn take_log(&mut self) -> Log {
        std::mem::take(&mut self.window.log)
    }

    /// The loss of the window's last batch, detached, as it was when it ran last.
    pub(super) fn last_loss(&self) -> Option<Tensor> {
        self.window.losses.last().map(Tensor::shallow_clone)
    }

    /// The first part of a batch that is run at once.
    pub(super) fn part(&self, batch: &AnyBatch) -> Result<AnyBatch> {
        match batch.split(self.parts)? {
            Some(parts) => parts.into_iter().next(),
            None => Some(batch.shallow_clone()),
        }
        .ok_or_else(|| Error::config("a batch without examples"))
    }

    /// Computes the gradients of the window's first `count` batches anew, with the same random
    /// numbers; what they log, and their losses.
    fn rerun(
        &mut self,
        model: &mut dyn LightningModule,
        count: usize,
    ) -> Result<(Log, Vec<Tensor>)> {
        self.optim.zero_grad()?;
        self.rollback.restore(model)?;
        let (mut log, mut losses) = (Log::default(), Vec::with_capacity(count));
        for at in 0..count {
            let mut own = Log::default();
            losses.push(self.forward_backward(model, at, at as i64, &mut own, None)?);
            log.merge(own)?;
        }
        Ok((log, losses))
    }

    /// The whole window once more, in place of what it was before.
    pub(super) fn rerun_window(&mut self, model: &mut dyn LightningModule) -> Result<()> {
        let (log, losses) = self.rerun(model, self.window.batches.len())?;
        (self.window.log, self.window.losses) = (log, losses);
        Ok(())
    }

    /// Halves the parts that batches run in, if `error` asks for it and they can be halved.
    fn split(
        &mut self,
        scope: LossScope,
        error: Error,
        at: usize,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let parts = 2 * self.parts;
        let fits = parts <= self.window.batches[at].0.len();
        if !self.config.micro_batching || !error.is_out_of_memory() || !fits {
            return Err(error);
        }
        match scope {
            LossScope::Examples => {}
            LossScope::Batch => {
                return Err(Error::config(
                    "a batch does not fit into memory, and its loss is of the batch as a whole, so \
                     that it cannot run in parts: choose a smaller batch, or a memory budget",
                ));
            }
            LossScope::Unknown if self.parts > 1 => {}
            LossScope::Unknown => emit(Event::Note {
                text:
                    "the loss is the model's own: if it compares the examples of a batch with each \
                       other, as a contrastive one does, it is another loss in parts; declare \
                       `of = batch` or `of = examples`, or set micro_batching to false"
                        .to_owned(),
            })?,
        }
        self.optim.zero_grad()?;
        self.set_parts(parts);
        if self.policy.device.is_cuda() {
            ffi::cuda_empty_cache()?;
        }
        self.recovered(Recovery::MicroBatches { parts }, emit)
    }

    /// Runs the window once more, observed, to find where it stopped being finite.
    pub(super) fn explain(
        &mut self,
        model: &mut dyn LightningModule,
        scale: f64,
        emit: &mut Emit<'_>,
    ) -> Result<Option<Provenance>> {
        let aside = Aside::begin(model, self.policy.device)?;
        self.rollback.restore_random()?;
        let context = self.new_context();
        let parameters = nn::parameters(model);
        let replay = Replay {
            policy: self.policy,
            context,
            scale,
            batches: self.window.in_parts(model, self.parts)?,
            global_step: self.global_step(),
            parameters: &parameters,
        };
        let found = replay.find(model);
        aside.end(model)?;
        let (provenance, text) = match found {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => (None, provenance::unexplained(None)),
            Err(error) => (None, provenance::unexplained(Some(&error))),
        };
        emit(Event::Note { text })?;
        Ok(provenance)
    }
}
