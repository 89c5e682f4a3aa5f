//! One optimizer step: unscale, hooks, clip, step, update, and what follows from the outcome.

use tch::Tensor;

use super::{
    MemoryPlan, TrainerConfig,
    fit::{Callbacks, Emit},
    graph::StepAccess,
    profile::{Phase, Profile, Profiler},
    recovery::{Good, Next, NonFinite},
    window::Window,
};
use crate::{
    Hook, LightningModule, Result,
    event::{Event, Skipped},
    log::{Log, Logged},
    nn::Context,
    optim::{Interval, OnDevice, Scheduled},
    precision::{
        Clip, GradScaler, GradientStorage, Gradients, NarrowGradients, Policy, StepOutcome,
        Unscaled, widen_gradients,
    },
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
    pub(super) optimizers: Vec<Scheduled>,
    pub(super) scaler: GradScaler,
    pub(super) counts: Counts,
    pub(super) window: Window,
    /// Parts that a batch runs in.
    pub(super) parts: i64,
    /// Where gradients may have 16 bits.
    narrow: Option<NarrowGradients>,
    pub(super) probed: bool,
    /// What is checkpointed, once that was chosen.
    pub(super) memory: Option<MemoryPlan>,
    pub(super) profiler: Profiler,
    /// The state to come back to.
    pub(super) good: Option<Good>,
    /// The rate of the last step.
    pub(super) lr: f64,
    /// What those who follow the steps need.
    pub(super) access: StepAccess,
}

impl<'a> StepRunner<'a> {
    pub(super) fn new(
        config: &'a TrainerConfig,
        optimizers: Vec<Scheduled>,
        access: StepAccess,
    ) -> Result<Self> {
        let policy = config.policy();
        let scaler = match config.precision.scales_loss() {
            true => GradScaler::new(config.device, config.scaler)?,
            false if config.on_non_finite == NonFinite::Ignore => {
                GradScaler::disabled(config.device)?
            }
            false => GradScaler::checking(config.device)?,
        };
        let lr = first_lr(&optimizers);
        let narrow = match keeps_narrow_gradients(config) {
            true => Some(NarrowGradients::allow(
                optimizers.iter().flat_map(|scheduled| scheduled.optimizer.parameters().iter()),
            )?),
            false => None,
        };
        Ok(Self {
            config,
            policy,
            context: Context::new(policy, true).with_islands(config.islands.clone()),
            optimizers,
            scaler,
            counts: Counts::default(),
            window: Window::default(),
            parts: 1,
            narrow,
            probed: false,
            memory: None,
            profiler: Profiler::new(config.device),
            good: None,
            lr,
            access,
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

    pub(super) fn scale(&self) -> Option<f64> {
        self.scaler.is_enabled().then(|| self.scaler.scale_value())
    }

    /// Moves the schedules that move by epochs; `logged` are the epoch's values. A schedule whose
    /// monitored value is reported at other moments moves then.
    pub(super) fn end_epoch(&mut self, logged: &[Logged], more_to_come: bool) -> Result<()> {
        let mut optimizers = self.optimizers.iter_mut();
        optimizers.try_for_each(|scheduled| match scheduled.monitor() {
            Some(monitor) if more_to_come && !has(logged, monitor) => Ok(()),
            _ => scheduled.advance(Interval::Epoch, logged),
        })
    }

    /// Moves the schedules that follow a value which a validation within an epoch has reported.
    pub(super) fn follow_validation(&mut self, logged: &[Logged]) -> Result<()> {
        let mut optimizers = self.optimizers.iter_mut();
        optimizers.try_for_each(|scheduled| match scheduled.monitor() {
            Some(monitor) if has(logged, monitor) => scheduled.advance(Interval::Epoch, logged),
            _ => Ok(()),
        })
    }

    /// Runs batches in so many parts from now on, whose gradients add up.
    pub(super) fn set_parts(&mut self, parts: i64) {
        self.parts = parts;
        if parts > 1 {
            self.narrow = None;
        }
    }

    /// What a hook sees now.
    pub(super) fn hook<'l>(&'l self, epoch: i64, log: &'l mut Log) -> Hook<'l> {
        Hook {
            epoch,
            global_step: self.global_step(),
            scale: self.scale(),
            device: self.policy.device,
            optimizers: &self.optimizers,
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
            let scale = self.scaler.scale_value();
            let outcome = self.attempt(model, epoch, log, callbacks)?;
            let attempt = self.counts.attempts;
            self.counts.attempts += 1;
            self.profiler.lap(Phase::Optimizer)?;
            let next = match &outcome {
                StepOutcome::Applied => {
                    self.count_applied(model)?;
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
                    self.recover(model, &skipped, emit)?
                }
            };
            self.tell_scale(scale, emit)?;
            if next == Next::Again {
                self.rerun_window(model)?;
                continue;
            }
            self.profiler.stop();
            return Ok(outcome);
        }
    }

    fn count_applied(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.counts.applied += 1;
        self.counts.consecutive_skips = 0;
        self.keep_good(model)
    }

    /// Counts a step that the device has applied by itself.
    pub(super) fn follow_applied(
        &mut self,
        model: &dyn LightningModule,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let scale = self.scaler.scale_value();
        self.counts.attempts += 1;
        self.count_applied(model)?;
        self.scaler.follow_applied();
        self.tell_scale(scale, emit)
    }

    /// Tells when the scale is no longer what it was.
    fn tell_scale(&self, before: f64, emit: &mut Emit<'_>) -> Result<()> {
        match self.scaler.scale_value() {
            same if same == before => Ok(()),
            scale => emit(Event::Scale { attempt: self.counts.attempts, scale }),
        }
    }

    /// Whether somebody looks at the gradients before they are clipped.
    fn looked_at(&self) -> bool {
        matches!(self.access, StepAccess::Within(_))
    }

    /// Unscales the gradients of each optimizer's parameters and, where nobody looks at them in
    /// between, clips them too; where nobody looks at them afterwards either, an optimizer that can
    /// does both within its step.
    fn unscale(&mut self) -> Result<Vec<Gradients<Unscaled>>> {
        let unseen = matches!(self.access, StepAccess::Late);
        let limit = match self.config.gradient_clip {
            Some(Clip::Norm(limit)) => Some(limit),
            // A factor takes the scale away as well.
            None if self.scaler.is_enabled() => Some(f64::INFINITY),
            _ => None,
        };
        let mut gradients = Vec::with_capacity(self.optimizers.len());
        for scheduled in &self.optimizers {
            let optimizer = scheduled.optimizer.as_ref();
            let within_step = limit.filter(|_| unseen && optimizer.abilities().scales);
            if within_step.is_none() && self.narrow.is_some() {
                widen_gradients(optimizer.parameters())?;
            }
            let scaled = self.scaler.gradients(optimizer)?;
            gradients.push(match (within_step, self.config.gradient_clip) {
                (Some(limit), _) => self.scaler.clip_norm_within_step(scaled, limit)?,
                (None, Some(Clip::Norm(limit))) if !self.looked_at() => {
                    self.scaler.unscale_and_clip_norm(scaled, limit)?
                }
                _ => self.scaler.unscale(scaled)?,
            });
        }
        Ok(gradients)
    }

    /// Clips by the norm of each optimizer's own gradients, as Lightning does, unless
    /// [`unscale`](Self::unscale) did.
    fn clip(&self, gradients: &[Gradients<Unscaled>]) -> Result<()> {
        gradients.iter().try_for_each(|gradients| match self.config.gradient_clip {
            // The norm stays on the device.
            Some(Clip::Norm(limit)) if self.looked_at() => {
                gradients.clip_grad_norm(limit).map(drop)
            }
            Some(Clip::Value(limit)) => gradients.clip_grad_value(limit),
            _ => Ok(()),
        })
    }

    /// Unscales and clips; nobody looks.
    pub(super) fn prepare_gradients(&mut self) -> Result<Vec<Gradients<Unscaled>>> {
        let gradients = self.unscale()?;
        self.clip(&gradients)?;
        Ok(gradients)
    }

    /// Steps each optimizer that can be captured, unless `void` is not 0.
    pub(super) fn step_captured(
        &mut self,
        gradients: Vec<Gradients<Unscaled>>,
        void: &Tensor,
    ) -> Result<()> {
        for (gradients, scheduled) in gradients.into_iter().zip(&mut self.optimizers) {
            if scheduled.optimizer.abilities().captures {
                let factor = gradients.into_factor();
                let known = OnDevice { found_inf: Some(void), factor: factor.as_ref() };
                scheduled.optimizer.step_with(known)?;
            }
        }
        Ok(())
    }

    /// Brings the rates to where captured steps read them.
    pub(super) fn write_rates(&mut self) -> Result<()> {
        self.optimizers.iter_mut().try_for_each(|scheduled| scheduled.optimizer.write_rates())
    }

    /// One try. With several optimizers it is skipped where one of them is; a schedule moves when
    /// its own optimizer did, or for every step where a skipped one counts.
    fn attempt(
        &mut self,
        model: &mut dyn LightningModule,
        epoch: i64,
        log: &mut Log,
        callbacks: &mut Callbacks<'_, '_>,
    ) -> Result<StepOutcome> {
        let gradients = self.unscale()?;
        self.profiler.lap(Phase::Unscale)?;
        for gradients in gradients.iter().filter(|_| self.looked_at()) {
            let mut hook = self.hook(epoch, log);
            model.on_before_optimizer_step(gradients, &mut hook)?;
            callbacks.on_before_optimizer_step(gradients, &mut hook)?;
        }
        self.profiler.lap(Phase::Hooks)?;
        self.clip(&gradients)?;
        self.profiler.lap(Phase::Clip)?;
        self.lr = first_lr(&self.optimizers);
        let mut overall = StepOutcome::Applied;
        for (gradients, scheduled) in gradients.into_iter().zip(&mut self.optimizers) {
            let outcome = self.scaler.step(gradients, scheduled.optimizer.as_mut())?;
            if outcome == StepOutcome::Applied || self.config.skipped_step_advances {
                scheduled.advance(Interval::Step, &[])?;
            }
            if overall == StepOutcome::Applied {
                overall = outcome;
            }
        }
        // Once, after all: their gradients are of one backward pass with one scale.
        self.scaler.update()?;
        Ok(overall)
    }

    /// The steps profiled since the last call.
    pub(super) fn take_profiles(&mut self) -> Result<Vec<Profile>> {
        self.profiler.take()
    }
}

fn has(logged: &[Logged], name: &str) -> bool {
    logged.iter().any(|logged| logged.name == name)
}

/// Whether the run asks for gradients in 16 bits and can have them.
fn keeps_narrow_gradients(config: &TrainerConfig) -> bool {
    asks_for_narrow_gradients(config) && full_gradients_note(config).is_none()
}

fn asks_for_narrow_gradients(config: &TrainerConfig) -> bool {
    config.gradients == GradientStorage::SixteenBit && config.precision.autocast().is_some()
}

/// Why gradients are full in a run that asks for 16 bits.
pub(super) fn full_gradients_note(config: &TrainerConfig) -> Option<String> {
    let why = match (config.device.is_cuda(), config.accumulate_grad_batches) {
        _ if !asks_for_narrow_gradients(config) => return None,
        (false, _) => "only CUDA has kernels for those".to_owned(),
        (true, 1) => return None,
        (true, batches) => format!("those of {batches} batches add up"),
    };
    Some(format!("gradients are kept in f32, not in 16 bits: {why}"))
}

/// The rate of the first optimizer's first group: the one that stands for all in a line of figures.
pub(super) fn first_lr(scheduled: &[Scheduled]) -> f64 {
    scheduled.first().map_or(0.0, |first| first.optimizer.rates()[0].lr)
}
