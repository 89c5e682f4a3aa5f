//! The state of the training between steps, and the operations that all kinds of steps share.

use tch::Tensor;

use super::{
    super::config::TrainerConfig,
    forward_backward::Passes,
    last_good::LastGood,
    observers::{Emit, Observers},
    optimization::Optimization,
    profile::Profiler,
    report::Told,
    rollback::Rollback,
    run_length::Length,
    weight_average::Average,
};
use crate::{
    Error, Hook, LightningModule, Result,
    event::{Event, MemoryPlan, Phase, Recovery, Skipped},
    log::Log,
    nn::{self, Context},
    precision::{Deferred, GradScaler, Gradients, KeptCasts, Policy, Precision, StepOutcome},
    probe::Products,
    random::Seeding,
};

/// Counts of training steps.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub(in crate::trainer) struct Counts {
    /// The number of steps that were applied.
    pub(in crate::trainer) applied: u64,
    /// The number of steps that were skipped.
    pub(in crate::trainer) skipped: u64,
    /// The number of applied and skipped steps, including steps that were undone later.
    pub(in crate::trainer) attempts: u64,
    /// The number of skipped steps since the last applied step.
    pub(super) consecutive_skips: u64,
}

/// The state of the training between steps.
pub(in crate::trainer) struct StepState<'a> {
    pub(super) config: &'a TrainerConfig,
    /// The configured policy, or that of the precision to which the run fell back.
    pub(super) policy: Policy,
    /// The context of forward passes in training.
    pub(super) context: Context,
    pub(in crate::trainer) optim: Optimization<'a>,
    pub(super) length: Length,
    pub(in crate::trainer) counts: Counts,
    /// The number of steps since the start or resume that ran without a CUDA graph.
    pub(super) eager: u64,
    /// The number of steps since the start or resume that ran as a CUDA graph.
    pub(in crate::trainer) replayed: u64,
    pub(super) rollback: Rollback,
    /// The number of parts into which each batch is split.
    pub(in crate::trainer) parts: i64,
    /// Whether the model does additional work, such as logging images, in the steps whose values
    /// are logged. Such steps run without a CUDA graph.
    pub(super) does_more: bool,
    /// Whether the dtypes of the first step were reported.
    pub(super) probed: bool,
    /// The notes that were written, each of which is written at most once.
    pub(super) told: Told,
    /// Detects training steps that seed the random generators.
    pub(super) seeding: Seeding,
    /// The memory plan: which modules are recomputed in the backward pass. `None` before the first
    /// step, and without a memory budget.
    pub(in crate::trainer) memory: Option<MemoryPlan>,
    pub(in crate::trainer) profiler: Profiler,
    /// The averages of the weights. `None` if the run does not average weights.
    pub(in crate::trainer) average: Option<Average>,
    /// The last copy of the state, which recovery restores.
    pub(super) good: Option<LastGood>,
    /// The learning rate of the last step.
    pub(in crate::trainer) lr: f64,
    /// Whether the current step has begun to change the weights and has not been reported yet.
    changing: bool,
}

impl<'a> StepState<'a> {
    pub(in crate::trainer) fn new(
        config: &'a TrainerConfig,
        model: &dyn LightningModule,
        optim: Optimization<'a>,
        length: Length,
    ) -> Result<Self> {
        let policy = config.policy();
        Ok(Self {
            config,
            policy,
            context: Context::new(policy, true).with_overrides(config.numerics.overrides.clone()),
            lr: optim.lr(),
            optim,
            length,
            counts: Counts::default(),
            eager: 0,
            replayed: 0,
            rollback: Rollback::new(model, config.device)?,
            parts: 1,
            does_more: false,
            probed: false,
            told: Told::default(),
            seeding: Seeding::default(),
            memory: None,
            profiler: Profiler::new(config.device),
            average: config
                .optimization
                .averaging
                .map(|kind| Average::new(model, kind))
                .transpose()?,
            good: None,
            changing: false,
        })
    }

    /// Returns the number of applied steps. With `skipped_step_advances`, skipped steps are counted
    /// too, as in Lightning.
    pub(in crate::trainer) fn global_step(&self) -> u64 {
        let Self { counts, config, .. } = self;
        counts.applied + if config.recovery.skipped_step_advances { counts.skipped } else { 0 }
    }

    pub(in crate::trainer) fn policy(&self) -> Policy {
        self.policy
    }

    /// Returns whether the values of the last step are reported.
    pub(super) fn is_logged(&self) -> bool {
        self.counts.attempts.is_multiple_of(self.config.logging.log_every_n_steps.cast_unsigned())
    }

    /// Returns whether the values of the next step are reported, if `running` earlier steps are
    /// still running on the device.
    pub(super) fn logs_after(&self, running: u64) -> bool {
        let next = self.counts.attempts + running + 1;
        next.is_multiple_of(self.config.logging.log_every_n_steps.cast_unsigned())
    }

    /// Exchanges the weights and their averages. Does nothing if the run computes no averages.
    pub(in crate::trainer) fn swap_average(&self) -> Result<()> {
        self.average.as_ref().map_or(Ok(()), Average::swap)
    }

    /// Splits each batch into `parts` parts from now on. The gradients of the parts are added up.
    pub(in crate::trainer) fn set_parts(&mut self, parts: i64) {
        self.parts = parts;
        if parts > 1 {
            self.optim.keep_full_gradients();
        }
    }

    /// Returns the current state of the run for a hook of the model or of a callback.
    pub(in crate::trainer) fn hook<'l>(&'l self, epoch: i64, log: &'l mut Log) -> Hook<'l> {
        Hook {
            epoch,
            global_step: self.global_step(),
            scale: self.optim.scale(),
            device: self.policy.device,
            optimizers: &self.optim.scheduled,
            log,
        }
    }

    /// Returns a context for training forward passes, with the current precision and memory plan.
    pub(super) fn new_context(&self) -> Context {
        let context =
            Context::new(self.policy, true).with_overrides(self.config.numerics.overrides.clone());
        match &self.memory {
            Some(plan) => context.with_segments(plan.segments.clone().into()),
            None => context,
        }
    }

    /// Returns the memory budget if no memory plan has been made for it yet.
    pub(in crate::trainer) fn unplanned_budget(&self) -> Option<u64> {
        self.config.memory.budget.filter(|_| self.memory.is_none())
    }

    /// Reports `plan`. In every later backward pass, the modules in the plan are recomputed.
    pub(in crate::trainer) fn follow_memory_plan(
        &mut self,
        plan: MemoryPlan,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        emit(Event::Checkpointed(plan.clone()))?;
        self.memory = Some(plan);
        self.context = self.new_context();
        Ok(())
    }

    /// Continues the run in another precision that stores the weights in the same dtype.
    pub(in crate::trainer) fn set_precision(
        &mut self,
        model: &dyn LightningModule,
        precision: Precision,
    ) -> Result<()> {
        self.policy.precision = precision;
        nn::place(model, self.policy, &self.config.numerics.overrides)?;
        self.context = self.new_context();
        self.optim.scaler = GradScaler::checking(self.policy.device)?;
        Ok(())
    }

    /// Begins a step: drops the last step's gradients, and saves the state that only an applied
    /// step may change.
    pub(super) fn begin(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.optim.zero_grad()?;
        self.rollback.keep(model)
    }

    /// Marks that the step begins to change the weights. From here on it cannot be undone.
    pub(in crate::trainer) fn begin_changes(&mut self) {
        self.changing = true;
    }

    /// Ends the current step after it has been reported. It cannot be undone from then on.
    pub(in crate::trainer) fn end(&mut self) {
        self.rollback.end();
        self.changing = false;
    }

    /// Returns to the state before the step that is running. Does nothing if no step is running.
    ///
    /// # Errors
    /// When the step has begun to change the weights.
    pub(in crate::trainer) fn return_to_step(
        &mut self,
        model: &mut dyn LightningModule,
    ) -> Result<()> {
        if self.changing {
            return Err(Error::config(
                "the step that failed had begun to change the weights; resume an older checkpoint",
            ));
        }
        self.optim.zero_grad()?;
        self.rollback.restore(model)
    }

    /// Returns a guard for one step that makes autocast cast each weight only once in the step.
    /// Returns `None` if autocast is off, or if the step consists of a single forward pass.
    pub(super) fn keep_casts(&self) -> Result<Option<KeptCasts>> {
        let several = self.config.optimization.accumulate_grad_batches > 1 || self.parts > 1;
        let casts = self.policy.precision.autocast().is_some() && several;
        casts.then(KeptCasts::keep).transpose()
    }

    /// Returns the settings and objects for the forward and backward passes of a training step.
    pub(super) fn passes(&mut self) -> Passes<'_> {
        let global_step = self.global_step();
        let Self { policy, context, optim, parts, seeding, profiler, .. } = self;
        let (policy, parts, is_first) = (*policy, *parts, false);
        let scaler = &optim.scaler;
        Passes { policy, context, scaler, parts, global_step, seeding, is_first, profiler }
    }

    /// Returns the settings and objects for forward and backward passes in the given [`Context`].
    pub(super) fn passes_in<'p>(&'p mut self, context: &'p Context) -> Passes<'p> {
        Passes { context, ..self.passes() }
    }

    /// Unscales the gradients, calls the hooks that read them, and clips the gradients.
    pub(super) fn unscale_and_clip(
        &mut self,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        epoch: i64,
    ) -> Result<Vec<Gradients<Deferred>>> {
        let gradients = if self.optim.is_watched() {
            let gradients = self.optim.unscale()?;
            self.profiler.lap(Phase::Unscale)?;
            for gradients in &gradients {
                let mut hook = self.hook(epoch, &mut observers.log);
                model.on_before_optimizer_step(gradients, &mut hook)?;
                observers.callbacks.on_before_optimizer_step(gradients, &mut hook)?;
            }
            self.profiler.lap(Phase::Hooks)?;
            self.optim.clip(gradients)?
        } else {
            let gradients = self.optim.unscale_and_clip(false)?;
            self.profiler.lap(Phase::Unscale)?;
            self.profiler.lap(Phase::Hooks)?;
            gradients
        };
        self.profiler.lap(Phase::Clip)?;
        Ok(gradients)
    }

    /// Steps the optimizers, unless a gradient is not finite, and counts the attempt.
    pub(super) fn apply(&mut self, gradients: Vec<Gradients<Deferred>>) -> Result<StepOutcome> {
        self.lr = self.optim.lr();
        self.changing = true;
        let outcome = self.optim.apply(gradients)?;
        self.changing = outcome == StepOutcome::Applied;
        self.counts.attempts += 1;
        self.profiler.lap(Phase::Optimizer)?;
        Ok(outcome)
    }

    /// Counts an applied step, updates averages of weights, and copies the state if a copy is due.
    pub(super) fn count_applied(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.changing = true;
        self.counts.applied += 1;
        self.counts.consecutive_skips = 0;
        if let Some(average) = &mut self.average {
            average.follow_step()?;
        }
        self.keep_good(model)
    }

    /// Counts a step that the device has applied as a CUDA graph.
    pub(super) fn follow_applied(
        &mut self,
        model: &dyn LightningModule,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let scale = self.optim.scaler.scale_value();
        self.counts.attempts += 1;
        self.count_applied(model)?;
        self.optim.scaler.follow_applied();
        self.report_scale(scale, emit)
    }

    /// Updates the average of the weights at the end of an epoch, if the run averages over epochs.
    pub(in crate::trainer) fn follow_epoch(&mut self, epoch: i64) -> Result<()> {
        match &mut self.average {
            Some(average) if average.follows_epoch(epoch) => {
                self.changing = true;
                average.follow_epoch()
            }
            _ => Ok(()),
        }
    }

    pub(super) fn count_skipped(&mut self) {
        self.counts.skipped += 1;
        self.counts.consecutive_skips += 1;
    }

    /// Updates the state after parameters were unfrozen: creates their optimizer state, drops the
    /// memory plan, and makes a new copy for recovery, which includes this state.
    pub(in crate::trainer) fn extend(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.optim.extend()?;
        self.start_over(model)
    }

    /// Undoes [`extend`](Self::extend) after the parameters were frozen again.
    pub(in crate::trainer) fn undo_extend(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.optim.drop_unused();
        self.start_over(model)
    }

    /// Drops the memory plan, and replaces the copy for recovery by a copy of the current state.
    fn start_over(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.memory = None;
        self.context = self.new_context();
        self.good = None;
        self.keep_good(model)
    }

    /// Reports the dtypes of the first step. Returns an error if a precision region had no effect.
    pub(super) fn report_dtypes(
        &mut self,
        model: &dyn LightningModule,
        probe: &Products,
        loss: &Tensor,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let scheduled = self.optim.scheduled.iter();
        let parameters = scheduled.flat_map(|one| one.optimizer.parameters().iter());
        let (precision, overrides) = (self.policy.precision, &self.config.numerics.overrides);
        probe.regions_held(&nn::parameters_in_regions(model, precision, overrides))?;
        let has_overrides = !overrides.is_empty();
        let observed = probe.finish(precision, loss, parameters, has_overrides)?;
        let note = observed.narrow_draw();
        emit(Event::Observed(observed))?;
        if let Some(text) = note {
            emit(Event::Note { text })?;
        }
        self.probed = true;
        Ok(())
    }

    /// Reports the loss scale if it differs from `before`.
    pub(super) fn report_scale(&self, before: f64, emit: &mut Emit<'_>) -> Result<()> {
        match self.optim.scaler.scale_value() {
            same if same == before => Ok(()),
            scale => emit(Event::Scale { attempt: self.counts.attempts, scale }),
        }
    }

    /// Reports how the trainer recovered from a skipped step or from a shortage of memory.
    pub(super) fn report_recovery(&self, recovery: Recovery, emit: &mut Emit<'_>) -> Result<()> {
        emit(Event::Recovered { attempt: self.counts.attempts, recovery })
    }

    /// Returns the report on the last attempted step, which was skipped.
    pub(super) fn skipped(&self, culprit: Option<String>, scale: f64) -> Skipped {
        Skipped { attempt: self.counts.attempts - 1, culprit, scale, provenance: None }
    }
}
