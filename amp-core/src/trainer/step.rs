//! One optimizer step: forward and scaled backward, unscale, clip, step, update.

use std::rc::Rc;

use tch::Tensor;

use super::{TrainerConfig, fit::Emit, profile::Stopwatch};
use crate::{
    Error, Hook, LightningModule, Result, Step,
    data::Batch,
    event::{Event, Phases},
    log::{Log, Logged},
    nn::Context,
    optim::{Interval, Scheduled},
    precision::{Clip, GradScaler, Policy, StepOutcome},
    probe::DtypeProbe,
};

/// Carries what lives from step to step.
pub(super) struct StepRunner<'a> {
    config: &'a TrainerConfig,
    policy: Policy,
    context: Context,
    optimizers: Vec<Scheduled>,
    scaler: GradScaler,
    applied: u64,
    skipped: u64,
    /// The rate of the last step.
    lr: f64,
    /// Whether gradients of the running window are already there.
    accumulating: bool,
    probed: bool,
    /// The phases of the step that is being profiled.
    profile: Option<Stopwatch>,
}

impl<'a> StepRunner<'a> {
    pub(super) fn new(config: &'a TrainerConfig, optimizers: Vec<Scheduled>) -> Result<Self> {
        let policy = config.policy();
        let scaler = match config.precision.scales_loss() {
            true => GradScaler::new(config.device, config.scaler)?,
            false if config.skip_non_finite => GradScaler::checking(config.device)?,
            false => GradScaler::disabled(config.device)?,
        };
        let lr = first_lr(&optimizers);
        Ok(Self {
            config,
            policy,
            context: Context::new(policy, true).with_islands(config.islands.clone()),
            optimizers,
            scaler,
            applied: 0,
            skipped: 0,
            lr,
            accumulating: false,
            probed: false,
            profile: None,
        })
    }

    /// Steps that count: those applied and, as Lightning has it, those skipped.
    pub(super) fn global_step(&self) -> u64 {
        self.applied + if self.config.skipped_step_advances { self.skipped } else { 0 }
    }

    /// Steps applied or skipped.
    pub(super) fn attempts(&self) -> u64 {
        self.applied + self.skipped
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    pub(super) fn lr(&self) -> f64 {
        self.lr
    }

    pub(super) fn scale(&self) -> Option<f64> {
        self.scaler.is_enabled().then(|| self.scaler.scale_value())
    }

    /// Moves the schedules that move by epochs; `logged` are the epoch's values.
    pub(super) fn end_epoch(&mut self, logged: &[Logged]) -> Result<()> {
        let mut optimizers = self.optimizers.iter_mut();
        optimizers.try_for_each(|scheduled| scheduled.advance(Interval::Epoch, logged))
    }

    /// What a hook sees now.
    pub(super) fn hook<'l>(&self, epoch: i64, log: &'l mut Log) -> Hook<'l> {
        Hook { epoch, global_step: self.global_step(), scale: self.scale(), log }
    }

    /// Adds the gradients of `share` of the batch's loss and returns the loss. The very first
    /// batch is probed for the dtypes it ran in.
    pub(super) fn accumulate(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &Batch,
        index: i64,
        share: f64,
        log: &mut Log,
        emit: &mut Emit<'_>,
    ) -> Result<Tensor> {
        if !self.accumulating {
            self.optimizers.iter_mut().try_for_each(|s| s.optimizer.zero_grad())?;
            self.accumulating = true;
            self.profile = match self.config.profile_every_n_steps {
                Some(every) if self.attempts().is_multiple_of(every.cast_unsigned()) => {
                    Some(Stopwatch::start(self.config.device))
                }
                _ => None,
            };
        }
        let probe = (!self.probed).then(|| Rc::new(DtypeProbe::default()));
        let probed = probe.clone().map(|probe| {
            Context::new(self.policy, true)
                .with_islands(self.config.islands.clone())
                .with_probe(probe)
        });
        let loss = {
            let _autocast = self.policy.autocast()?;
            let context = probed.as_ref().unwrap_or(&self.context);
            let mut step = Step::new(context, log, index as usize, self.global_step());
            model.training_step(batch, &mut step)?
        };
        self.lap(|phases| &mut phases.forward)?;
        let shared = if share < 1.0 { loss.f_mul_scalar(share)? } else { loss.shallow_clone() };
        self.scaler.scale(&shared)?.backward()?;
        self.lap(|phases| &mut phases.backward)?;
        if let Some(probe) = probe {
            let parameters = self.optimizers.iter().flat_map(|s| s.optimizer.parameters());
            emit(Event::Observed(probe.finish(self.config.precision, &loss, parameters)?))?;
            self.probed = true;
        }
        Ok(loss.f_detach()?)
    }

    /// Steps every optimizer on the accumulated gradients. A skipped step moves neither the
    /// optimizer's schedule nor the step count, unless configured as in Lightning; with several
    /// optimizers a step is skipped where one of them is.
    pub(super) fn step(
        &mut self,
        model: &mut dyn LightningModule,
        epoch: i64,
        log: &mut Log,
        emit: &mut Emit<'_>,
    ) -> Result<StepOutcome> {
        self.accumulating = false;
        self.lr = first_lr(&self.optimizers);
        let attempt = self.attempts();
        let scale = self.scaler.scale_value();
        let mut outcome = StepOutcome::Applied;
        let mut applied = Vec::with_capacity(self.optimizers.len());
        for at in 0..self.optimizers.len() {
            let stepped = self.step_one(at, model, epoch, log)?;
            applied.push(stepped == StepOutcome::Applied);
            if let StepOutcome::Skipped { culprit } = &stepped {
                emit(Event::Skipped { attempt, culprit: culprit.clone(), scale })?;
                outcome = stepped;
            }
        }
        // Once, after all: their gradients are of one backward pass with one scale.
        self.scaler.update()?;
        match &outcome {
            StepOutcome::Applied => self.applied += 1,
            StepOutcome::Skipped { .. } => self.skipped += 1,
        }
        if self.scaler.scale_value() != scale {
            emit(Event::Scale { attempt: attempt + 1, scale: self.scaler.scale_value() })?;
        }
        if self.scaler.has_collapsed() {
            return Err(Error::Scaler(format!(
                "the scale fell to {:e}, too low to divide by: {} of {} steps were skipped, so the \
                 gradients overflow at any scale; lower the learning rate or clip the gradients",
                self.scaler.scale_value(),
                self.skipped,
                self.attempts(),
            )));
        }
        for (scheduled, applied) in self.optimizers.iter_mut().zip(applied) {
            if applied || self.config.skipped_step_advances {
                scheduled.advance(Interval::Step, &[])?;
            }
        }
        self.lap(|phases| &mut phases.optimizer)?;
        Ok(outcome)
    }

    /// Unscales, clips and steps one optimizer. Clipping is by its own gradients' norm, as in
    /// Lightning.
    fn step_one(
        &mut self,
        at: usize,
        model: &mut dyn LightningModule,
        epoch: i64,
        log: &mut Log,
    ) -> Result<StepOutcome> {
        let gradients = self.scaler.gradients(self.optimizers[at].optimizer.as_ref())?;
        let gradients = self.scaler.unscale(gradients)?;
        model.on_before_optimizer_step(&gradients, &mut self.hook(epoch, log))?;
        match self.config.gradient_clip {
            Some(Clip::Norm(limit)) => {
                // The norm stays on the device.
                let _ = gradients.clip_grad_norm(limit)?;
            }
            Some(Clip::Value(limit)) => gradients.clip_grad_value(limit)?,
            None => {}
        }
        self.scaler.step(gradients, self.optimizers[at].optimizer.as_mut())
    }

    /// Ends a phase of a profiled step.
    fn lap(&mut self, phase: impl FnOnce(&mut Phases) -> &mut f64) -> Result<()> {
        match &mut self.profile {
            Some(stopwatch) => stopwatch.lap(phase),
            None => Ok(()),
        }
    }

    /// What was measured of this step, if it was profiled.
    pub(super) fn take_profile(&mut self) -> Option<Phases> {
        self.profile.take().map(Stopwatch::finish)
    }
}

/// The rate of the first optimizer's first parameter group.
fn first_lr(optimizers: &[Scheduled]) -> f64 {
    optimizers.first().map_or(0.0, |scheduled| scheduled.optimizer.rates()[0].lr)
}
