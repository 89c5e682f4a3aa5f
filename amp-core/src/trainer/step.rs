//! One optimizer step: unscale, hooks, clip, step, update, and what follows from the outcome.

use super::{
    MemoryPlan, TrainerConfig,
    callbacks::{Callbacks, Emit},
    optimization::Optimization,
    profile::{Phase, Profile, Profiler},
    recovery::{Good, Next},
    rollback::Rollback,
    window::Window,
};
use crate::{
    Hook, LightningModule, Result,
    event::{Event, Skipped},
    log::Log,
    nn::Context,
    precision::{Policy, StepOutcome},
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
    /// What is checkpointed, once that was chosen.
    pub(super) memory: Option<MemoryPlan>,
    pub(super) profiler: Profiler,
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
            memory: None,
            profiler: Profiler::new(config.device),
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
            self.profiler.stop();
            return Ok(outcome);
        }
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
