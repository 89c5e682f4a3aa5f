//! Runs the first training steps and records the first loss, the first gradients and the learning
//! rates.

use std::{cell::RefCell, rc::Rc};

use amp_core::{
    Error, Hook, LightningModule, Result, Step, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::AnyBatch,
    log::Log,
    loss::at_least_f32,
    nn::{Context, Substitute, parameters},
    precision::{GradScalerConfig, Gradients, Precision, StepOutcome, Unscaled},
    tch::{Tensor, no_grad},
    trainer::{Check, StepAccess, ValCheckInterval, first_loss},
};

use super::{LOW_SCALE, STEPS, emulation::Rounding};

use crate::{
    case::Case,
    diagnose::Overrides,
    gate::{
        deadline::Deadline,
        hooks::{copies, copy_of, rates},
        identity,
        job::Job,
    },
    interceptor::{Intercepted, Interceptor},
    reset::ResetModel,
};

/// What is recorded during a run of the first training steps.
#[derive(Default)]
pub(super) struct Trace {
    pub(super) gradients: Vec<(String, Tensor)>,
    pub(super) loss: Option<Tensor>,
    pub(super) rates: Vec<f64>,
    /// Copies of the parameters before the first step, as the run stores them. Empty until the
    /// first step.
    start: Vec<Tensor>,
}

#[derive(Clone)]
struct Tracer {
    trace: Rc<RefCell<Trace>>,
    /// Whether the run ends with an error if a step is skipped.
    must_apply: bool,
}

impl Callback for Tracer {
    fn name(&self) -> String {
        "conformance".into()
    }

    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        _: &mut Hook<'_>,
    ) -> Result<()> {
        let mut trace = self.trace.borrow_mut();
        if trace.gradients.is_empty() {
            trace.gradients = copies(gradients)?;
        }
        Ok(())
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        if self.must_apply && matches!(outcome, Some(StepOutcome::Skipped { .. })) {
            return Err(Error::NonFinite("a gradient of 32-true is not finite".into()));
        }
        if outcome == Some(&StepOutcome::Applied) {
            self.trace.borrow_mut().rates.extend(rates(hook));
        }
        Ok(Vec::new())
    }
}

/// An interceptor that computes each loss without dropout, emulates rounding if `rounding` is
/// given, and records the first loss. Batch norms use batch statistics only if `batch_statistics`
/// is true.
struct Still {
    tracer: Tracer,
    overrides: Rc<Overrides>,
    rounding: Option<Rounding>,
    /// Replaces tensors between modules in a run without emulated rounding.
    substitute: Option<Rc<dyn Substitute>>,
    batch_statistics: bool,
    deadline: Deadline,
}

impl Interceptor for Still {
    fn step_access(&self) -> StepAccess {
        StepAccess::InStep("the gate compares the steps with those of 32-true")
    }

    /// Returns false, so that the trainer calls `training_step` even for a model that optimizes
    /// manually. Such a model may compute several losses for a batch. Only the first one is used.
    fn optimizes_manually(&self, _: &dyn LightningModule) -> bool {
        false
    }

    fn training_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        step: &mut Step<'_>,
    ) -> Result<Tensor> {
        self.deadline.check()?;
        let mut context = Context::new(step.context().policy(), self.batch_statistics)
            .without_dropout()
            .with_overrides(self.overrides.clone());
        self.note_start(model, self.rounding.as_ref().is_none_or(Rounding::restores))?;
        if let Some(rounding) = &mut self.rounding {
            rounding.begin(model)?;
            context = context.with_substitute(rounding.between());
            self.note_start(model, true)?;
        } else if let Some(substitute) = &self.substitute {
            context = context.with_substitute(substitute.clone());
        }
        let mut log = Log::default();
        let (index, global_step) = step.place();
        let mut own = Step::new(&context, &mut log, index, global_step);
        let batch = match &self.rounding {
            Some(rounding) => &rounding.batch(batch)?,
            None => batch,
        };
        let operators = self.rounding.as_ref().map(Rounding::operators).transpose()?;
        let loss = first_loss(model, batch, &mut own)?;
        drop(operators);
        let (loss, descended) = match &self.rounding {
            Some(rounding) => rounding.loss(&loss)?,
            None => (loss.shallow_clone(), loss),
        };
        let mut trace = self.tracer.trace.borrow_mut();
        if trace.loss.is_none() {
            trace.loss = Some(copy_of(&loss)?);
        }
        Ok(descended)
    }

    fn before_step(
        &mut self,
        _: &dyn LightningModule,
        gradients: &Gradients<Unscaled>,
        _: &Hook<'_>,
    ) -> Result<()> {
        self.rounding.as_mut().map_or(Ok(()), |rounding| rounding.end(gradients))
    }

    fn after_step(
        &mut self,
        model: &dyn LightningModule,
        _: &StepOutcome,
        hook: &Hook<'_>,
    ) -> Result<()> {
        let rounding = self.rounding.as_ref();
        rounding.map_or(Ok(()), |rounding| rounding.stepped(model, hook.optimizers()))
    }
}

impl Still {
    /// Copies the parameters before the first step, if `is_stored` says that they have the values
    /// that the run stores.
    fn note_start(&self, model: &dyn LightningModule, is_stored: bool) -> Result<()> {
        let start = &mut self.tracer.trace.borrow_mut().start;
        if is_stored && start.is_empty() {
            *start = weights(model)?;
        }
        Ok(())
    }
}

fn weights(model: &dyn LightningModule) -> Result<Vec<Tensor>> {
    parameters(model).iter().map(|own| copy_of(&own.tensor)).collect()
}

/// Computes the difference between two values of a parameter, at least in f32.
fn update(after: &Tensor, before: &Tensor) -> Result<Tensor> {
    no_grad(|| Ok(at_least_f32(after)?.f_sub(&at_least_f32(before)?)?))
}

/// The results of a run of the first training steps.
pub(super) struct Ran {
    pub(super) trace: Trace,
    /// The names of the parameters, in the order of `weights` and `update`.
    pub(super) names: Vec<String>,
    pub(super) weights: Vec<Tensor>,
    /// The difference between `weights` and the parameters before the first step, as the run stores
    /// them: a precision with 16-bit storage has rounded them.
    pub(super) update: Vec<Tensor>,
    pub(super) finite: bool,
}

pub(super) struct Steps<'a> {
    pub(super) job: &'a Job,
    pub(super) case: &'a Case,
    pub(super) precision: Precision,
    /// Whether batch norms use the statistics of the batch, as in training, or their running
    /// statistics.
    pub(super) batch_statistics: bool,
    pub(super) deadline: &'a Deadline,
}

impl Steps<'_> {
    pub(super) fn config(&self, steps: u64, init_scale: f64) -> TrainerConfig {
        let mut config = self.job.config(self.case, self.precision);
        // Twelve epochs suffice for `steps` applied steps even if some steps are skipped. If every
        // step is skipped, the run ends after these epochs.
        config.max_epochs = 12;
        config.max_steps = Some(steps);
        config.numerics.scaler =
            GradScalerConfig { init_scale, growth_interval: 4, ..config.numerics.scaler };
        // This run does not validate, because other jobs of the gate check validation.
        config.loops.val_check_interval = ValCheckInterval::Never;
        config.checks.shared_examples = true;
        // After a run that averages the weights, the model has the averages. These steps compare the
        // weights themselves.
        config.optimization.averaging = None;
        config
    }

    /// Resets the model to its initial state and runs the steps.
    pub(super) fn run(&self, model: &mut ResetModel, config: TrainerConfig) -> Result<Ran> {
        self.run_model(model, config, (None, None))
    }

    /// Runs the steps as [`run`](Self::run) does. `substitute` replaces tensors between modules.
    pub(super) fn run_substituted(
        &self,
        model: &mut ResetModel,
        config: TrainerConfig,
        substitute: Rc<dyn Substitute>,
    ) -> Result<Ran> {
        self.run_model(model, config, (None, Some(substitute)))
    }

    /// Runs the model with the low loss scale [`LOW_SCALE`], and with emulated rounding if
    /// `rounding` is given.
    pub(super) fn run_at_low_scale(
        &self,
        model: &mut ResetModel,
        rounding: Option<Rounding>,
    ) -> Result<Ran> {
        let mut config = self.config(STEPS, LOW_SCALE);
        // These runs only serve to compute bounds, so the invariants of training are not checked.
        config.checks.level = Check::Off;
        self.run_model(model, config, (rounding, None))
    }

    fn run_model(
        &self,
        model: &mut ResetModel,
        config: TrainerConfig,
        (rounding, substitute): (Option<Rounding>, Option<Rc<dyn Substitute>>),
    ) -> Result<Ran> {
        // If a step of 32-true is skipped, there is nothing to compare the precision with, so the
        // run ends with an error. With emulated rounding, a gradient may overflow, and the step may
        // be skipped.
        let must_apply = self.precision == Precision::F32True && rounding.is_none();
        let tracer = Tracer { trace: Rc::default(), must_apply };
        let overrides = config.numerics.overrides.clone();
        let still = Still {
            tracer: tracer.clone(),
            overrides,
            rounding,
            substitute,
            batch_statistics: self.batch_statistics,
            deadline: self.deadline.clone(),
        };
        let mut model = self.job.with_fault(model.reset()?, self.precision);
        let mut model = Intercepted::borrowing(model.as_mut(), still);
        Trainer::new(config).callback(tracer.clone()).fit(&mut model, &self.case.data)?;
        let finite = identity::is_finite(&model)?;
        let names = parameters(&model).iter().map(|own| own.name.to_string()).collect();
        let weights = weights(&model)?;
        let mut trace = tracer.trace.take();
        let start = std::mem::take(&mut trace.start);
        let pairs = weights.iter().zip(start);
        let update = pairs.map(|(after, before)| update(after, &before)).collect::<Result<_>>()?;
        Ok(Ran { trace, names, weights, update, finite })
    }
}
