//! One optimizer step: unscale, hooks, clip, step, update, and what follows from the outcome.

use std::rc::Rc;

use tch::Tensor;

use super::{
    TrainerConfig,
    average::Average,
    callbacks::{Callbacks, Emit},
    optimization::Optimization,
    profile::Profiler,
    recovery::{Good, Next},
    rollback::Rollback,
    window::Window,
};
use crate::{
    Error, Hook, LightningModule, Result,
    data::AnyBatch,
    event::{Event, MemoryPlan, Phase, Profile, Skipped},
    log::Log,
    module::{Done, ManualStep},
    nn::Context,
    precision::{Policy, StepOutcome},
    probe::Products,
};

/// How many steps there were.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Counts {
    /// Steps that moved the parameters.
    pub(super) applied: u64,
    /// Steps left out.
    pub(super) skipped: u64,
    /// Both, and those taken back since.
    pub(super) attempts: u64,
    /// Steps left out since the last applied.
    pub(super) consecutive_skips: u64,
}

/// Carries what lives from step to step.
pub(super) struct StepRunner<'a> {
    pub(super) config: &'a TrainerConfig,
    /// The configuration's, until the run falls back to another precision.
    pub(super) policy: Policy,
    pub(super) context: Context,
    pub(super) optim: Optimization<'a>,
    pub(super) counts: Counts,
    pub(super) window: Window,
    pub(super) rollback: Rollback,
    /// Parts that a batch runs in.
    pub(super) parts: i64,
    pub(super) probed: bool,
    /// Whether it was looked for targets that a loss of the model's own may leave out.
    pub(super) looked_for_left_out: bool,
    /// Whether it was said that updates of 16-bit weights are lost.
    pub(super) told_lost_updates: bool,
    /// What is checkpointed, once that was chosen.
    pub(super) memory: Option<MemoryPlan>,
    pub(super) profiler: Profiler,
    /// The averages of the weights, where they are kept.
    pub(super) average: Option<Average>,
    /// The state to come back to.
    pub(super) good: Option<Good>,
    /// The rate of the last step.
    pub(super) lr: f64,
}

impl<'a> StepRunner<'a> {
    pub(super) fn new(
        config: &'a TrainerConfig,
        model: &dyn LightningModule,
        optim: Optimization<'a>,
    ) -> Result<Self> {
        let policy = config.policy();
        Ok(Self {
            config,
            policy,
            context: Context::new(policy, true).with_islands(config.islands.clone()),
            lr: optim.lr(),
            optim,
            counts: Counts::default(),
            window: Window::default(),
            rollback: Rollback::new(model, config.device)?,
            parts: 1,
            probed: false,
            looked_for_left_out: false,
            told_lost_updates: false,
            memory: None,
            profiler: Profiler::new(config.device),
            average: config.averaging.map(|kind| Average::new(model, kind)).transpose()?,
            good: None,
        })
    }

    /// Steps that count: those applied and, as Lightning has it, those skipped.
    pub(super) fn global_step(&self) -> u64 {
        let Self { counts, config, .. } = self;
        counts.applied + if config.skipped_step_advances { counts.skipped } else { 0 }
    }

    pub(super) fn policy(&self) -> Policy {
        self.policy
    }

    /// Exchanges the weights and their averages, where these are kept.
    pub(super) fn swap_average(&self) -> Result<()> {
        self.average.as_ref().map_or(Ok(()), Average::swap)
    }

    /// Runs batches in so many parts from now on, whose gradients add up.
    pub(super) fn set_parts(&mut self, parts: i64) {
        self.parts = parts;
        if parts > 1 {
            self.optim.keep_full_gradients();
        }
    }

    /// What a hook sees now.
    pub(super) fn hook<'l>(&'l self, epoch: i64, log: &'l mut Log) -> Hook<'l> {
        Hook {
            epoch,
            global_step: self.global_step(),
            scale: self.optim.scale(),
            device: self.policy.device,
            optimizers: &self.optim.scheduled,
            log,
        }
    }

    /// Steps on the window's gradients, and again where the recovery says so.
    pub(super) fn step(
        &mut self,
        model: &mut dyn LightningModule,
        epoch: i64,
        log: &mut Log,
        callbacks: &mut Callbacks<'_, '_>,
        emit: &mut Emit<'_>,
    ) -> Result<StepOutcome> {
        self.end_passes();
        loop {
            let scale = self.optim.scaler.scale_value();
            let before = self.weights_before()?;
            let outcome = self.attempt(model, epoch, log, callbacks)?;
            let attempt = self.counts.attempts;
            self.counts.attempts += 1;
            self.profiler.lap(Phase::Optimizer)?;
            let next = match &outcome {
                StepOutcome::Applied => {
                    self.count_applied(model)?;
                    if let Some(before) = before
                        && let Some(text) = self.lost_updates(&before)?
                    {
                        emit(Event::Note { text })?;
                    }
                    Next::GoOn
                }
                StepOutcome::Skipped { culprit } => {
                    self.counts.skipped += 1;
                    self.counts.consecutive_skips += 1;
                    let provenance = match self.config.provenance {
                        true => self.explain(model, scale, emit)?,
                        false => None,
                    };
                    let skipped = Skipped { attempt, culprit: culprit.clone(), scale, provenance };
                    emit(Event::Skipped(skipped.clone()))?;
                    if !self.config.skipped_step_advances {
                        self.rollback.restore(model)?;
                    }
                    self.recover(model, &skipped, emit)?
                }
            };
            self.tell_scale(scale, emit)?;
            if next == Next::Again {
                self.rerun_window(model)?;
                continue;
            }
            let values = self.take_log();
            match &outcome {
                StepOutcome::Skipped { .. } if !self.config.skipped_step_advances => {
                    log.merge_left_out(values)?;
                }
                _ => log.merge(values)?,
            }
            self.profiler.stop();
            return Ok(outcome);
        }
    }

    /// Lets the model do one batch itself; the loss of its last backward pass, and whether any optimizer
    /// has stepped.
    pub(super) fn step_manually(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        index: i64,
        log: &mut Log,
        emit: &mut Emit<'_>,
    ) -> Result<(Tensor, StepOutcome)> {
        let scale = self.optim.scaler.scale_value();
        self.lr = self.optim.lr();
        let probe = (!self.probed).then(|| Rc::new(Products::default()));
        let observed = probe.clone().map(|probe| self.new_context().with_dtype_probe(probe));
        let context = observed.as_ref().unwrap_or(&self.context);
        let (policy, global_step) = (self.policy, self.global_step());
        let (optim, mut own) = (&mut self.optim, Log::default());
        let mut step =
            ManualStep::new(policy, context, &mut own, optim, index as usize, global_step);
        model.manual_step(batch, &mut step)?;
        let Done { loss, outcomes } = step.done();
        let loss = loss.unwrap_or_else(|| Tensor::from(0.0));
        if let Some(probe) = probe {
            self.observe(&probe, &loss, emit)?;
        }
        if self.optim.scaler.is_used() {
            self.optim.scaler.update()?;
        }
        let attempt = self.counts.attempts;
        self.counts.attempts += 1;
        let (mut applied, mut left_out) = (outcomes.is_empty(), None);
        for outcome in outcomes {
            match outcome {
                StepOutcome::Applied => applied = true,
                StepOutcome::Skipped { culprit } => {
                    let skipped = Skipped { attempt, culprit, scale, provenance: None };
                    emit(Event::Skipped(skipped.clone()))?;
                    left_out = Some(skipped);
                }
            }
        }
        let outcome = match left_out {
            Some(skipped) if !applied => {
                self.counts.skipped += 1;
                self.counts.consecutive_skips += 1;
                let Next::GoOn = self.recover(model, &skipped, emit)? else {
                    return Err(Error::config("a manual step cannot be run again"));
                };
                log.merge_left_out(own)?;
                StepOutcome::Skipped { culprit: skipped.culprit }
            }
            _ => {
                log.merge(own)?;
                self.count_applied(model)?;
                StepOutcome::Applied
            }
        };
        self.tell_scale(scale, emit)?;
        self.profiler.stop();
        Ok((loss, outcome))
    }

    /// Tells the dtypes of the first step.
    pub(super) fn observe(
        &mut self,
        probe: &Products,
        loss: &Tensor,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let scheduled = self.optim.scheduled.iter();
        let parameters = scheduled.flat_map(|one| one.optimizer.parameters().iter());
        let (precision, has_islands) = (self.policy.precision, !self.config.islands.is_empty());
        emit(Event::Observed(probe.finish(precision, loss, parameters, has_islands)?))?;
        self.probed = true;
        Ok(())
    }

    /// One try: unscale → hooks → clip → apply.
    fn attempt(
        &mut self,
        model: &mut dyn LightningModule,
        epoch: i64,
        log: &mut Log,
        callbacks: &mut Callbacks<'_, '_>,
    ) -> Result<StepOutcome> {
        let gradients = if self.optim.is_watched() {
            let gradients = self.optim.unscale()?;
            self.profiler.lap(Phase::Unscale)?;
            for gradients in &gradients {
                let mut hook = self.hook(epoch, log);
                model.on_before_optimizer_step(gradients, &mut hook)?;
                callbacks.on_before_optimizer_step(gradients, &mut hook)?;
            }
            self.profiler.lap(Phase::Hooks)?;
            self.optim.clip(gradients)?
        } else {
            let gradients = self.optim.unscale_and_clip()?;
            self.profiler.lap(Phase::Unscale)?;
            self.profiler.lap(Phase::Hooks)?;
            gradients
        };
        self.profiler.lap(Phase::Clip)?;
        self.lr = self.optim.lr();
        self.optim.apply(gradients)
    }

    fn count_applied(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.counts.applied += 1;
        self.counts.consecutive_skips = 0;
        if let Some(average) = &mut self.average {
            average.follow_step()?;
        }
        self.keep_good(model)
    }

    /// Counts a step that the device has applied by itself.
    pub(super) fn follow_applied(
        &mut self,
        model: &dyn LightningModule,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let scale = self.optim.scaler.scale_value();
        self.counts.attempts += 1;
        self.count_applied(model)?;
        self.optim.scaler.follow_applied();
        self.tell_scale(scale, emit)
    }

    /// Tells when the scale is no longer what it was.
    fn tell_scale(&self, before: f64, emit: &mut Emit<'_>) -> Result<()> {
        match self.optim.scaler.scale_value() {
            same if same == before => Ok(()),
            scale => emit(Event::Scale { attempt: self.counts.attempts, scale }),
        }
    }

    /// The steps profiled since the last call.
    pub(super) fn take_profiles(&mut self) -> Result<Vec<Profile>> {
        self.profiler.take()
    }
}
