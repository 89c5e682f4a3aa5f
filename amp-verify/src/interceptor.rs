//! Wraps a model and intercepts the trainer's calls to the model. Checks use an interceptor to
//! observe a run. The self-test uses one to put mistakes into a run.

use amp_core::{
    Hook, Hyperparameters, LightningModule, LossScope, Result, Step,
    callback::Mode,
    data::AnyBatch,
    metric::Reduction,
    nn::{Visit, Visitor},
    optim::{Optimizers, TrainingPlan},
    precision::{Gradients, StepOutcome, Unscaled},
    state::State,
    tch::Tensor,
    trainer::{ManualStep, StepAccess},
};

/// Intercepts the calls of the trainer to a model. By default each method calls the corresponding
/// method of the model.
#[expect(clippy::missing_errors_doc, reason = "an error ends the run, as in the model's hooks")]
pub trait Interceptor {
    /// Returns when the interceptor must run: within a step, after each step before the next one,
    /// or later ([`StepAccess::Deferred`], the default). The other two restrict the trainer's
    /// optimizations: with [`StepAccess::InStep`], for example, steps do not run as CUDA graphs.
    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    /// Returns whether the model runs backward passes and optimizers itself (manual optimization).
    /// If not, the trainer calls [`training_step`](Self::training_step).
    fn optimizes_manually(&self, model: &dyn LightningModule) -> bool {
        model.optimizes_manually()
    }

    /// Computes the loss of a training batch.
    fn training_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        step: &mut Step<'_>,
    ) -> Result<Tensor> {
        model.training_step(batch, step)
    }

    /// Computes the validation values of a batch.
    fn validation_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        step: &mut Step<'_>,
    ) -> Result<()> {
        model.validation_step(batch, step)
    }

    /// Returns the optimizers and schedules of the run.
    fn optimizers(&self, model: &dyn LightningModule, plan: &TrainingPlan) -> Result<Optimizers> {
        model.configure_optimizers(plan)
    }

    /// Receives the unscaled gradients of a step before the callbacks receive them and before
    /// clipping.
    fn before_step(
        &mut self,
        model: &dyn LightningModule,
        gradients: &Gradients<Unscaled>,
        hook: &Hook<'_>,
    ) -> Result<()> {
        let _ = (model, gradients, hook);
        Ok(())
    }

    /// Receives the outcome of a step: applied or skipped.
    fn after_step(
        &mut self,
        model: &dyn LightningModule,
        outcome: &StepOutcome,
        hook: &Hook<'_>,
    ) -> Result<()> {
        let _ = (model, outcome, hook);
        Ok(())
    }

    /// Receives the loss of a batch. The loss is detached from the autograd graph.
    fn after_batch(&mut self, loss: &Tensor) -> Result<()> {
        let _ = loss;
        Ok(())
    }
}

/// A model whose calls from the trainer go through an interceptor.
pub struct Intercepted<'m, T> {
    model: Held<'m>,
    interceptor: T,
}

/// The wrapped model: owned by the wrapper, or borrowed from a caller that uses the model again
/// later.
enum Held<'m> {
    Own(Box<dyn LightningModule>),
    Borrowed(&'m mut dyn LightningModule),
}

impl Held<'_> {
    fn as_ref(&self) -> &dyn LightningModule {
        match self {
            Self::Own(model) => model.as_ref(),
            Self::Borrowed(model) => *model,
        }
    }

    fn as_mut(&mut self) -> &mut dyn LightningModule {
        match self {
            Self::Own(model) => model.as_mut(),
            Self::Borrowed(model) => *model,
        }
    }
}

impl<T: Interceptor> Intercepted<'static, T> {
    /// Wraps `model`, so that the trainer's calls to it go through `interceptor`.
    pub fn new(model: Box<dyn LightningModule>, interceptor: T) -> Self {
        Self { model: Held::Own(model), interceptor }
    }
}

impl<'m, T: Interceptor> Intercepted<'m, T> {
    /// Wraps a borrowed model with `interceptor` for one run.
    pub fn borrowing(model: &'m mut dyn LightningModule, interceptor: T) -> Self {
        Self { model: Held::Borrowed(model), interceptor }
    }
}

impl<T> Visit for Intercepted<'_, T> {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.model.as_ref().visit(visitor);
    }
}

impl<T: Interceptor> LightningModule for Intercepted<'_, T> {
    fn name(&self) -> &'static str {
        self.model.as_ref().name()
    }

    fn hyperparameters(&self) -> Hyperparameters {
        self.model.as_ref().hyperparameters()
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        self.interceptor.training_step(self.model.as_mut(), batch, step)
    }

    fn optimizes_manually(&self) -> bool {
        self.interceptor.optimizes_manually(self.model.as_ref())
    }

    fn manual_step(&mut self, batch: &AnyBatch, step: &mut ManualStep<'_>) -> Result<()> {
        self.model.as_mut().manual_step(batch, step)
    }

    fn step_access(&self) -> StepAccess {
        self.model.as_ref().step_access().and(self.interceptor.step_access())
    }

    fn values_in_step(&self, values: &mut State) -> Result<()> {
        self.model.as_ref().values_in_step(values)
    }

    fn loss_weight(&self, batch: &AnyBatch) -> Result<f64> {
        self.model.as_ref().loss_weight(batch)
    }

    fn loss_scope(&self) -> LossScope {
        self.model.as_ref().loss_scope()
    }

    fn reduction(&self, name: &str) -> Option<Reduction> {
        self.model.as_ref().reduction(name)
    }

    fn metric_mode(&self, name: &str) -> Option<Mode> {
        self.model.as_ref().metric_mode(name)
    }

    fn validation_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        self.interceptor.validation_step(self.model.as_mut(), batch, step)
    }

    fn test_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        self.model.as_mut().test_step(batch, step)
    }

    fn predict_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<AnyBatch> {
        self.model.as_mut().predict_step(batch, step)
    }

    fn configure_optimizers(&self, plan: &TrainingPlan) -> Result<Optimizers> {
        self.interceptor.optimizers(self.model.as_ref(), plan)
    }

    fn on_train_start(&mut self) -> Result<()> {
        self.model.as_mut().on_train_start()
    }

    fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        self.model.as_mut().on_train_epoch_start(hook)
    }

    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        self.interceptor.before_step(self.model.as_ref(), gradients, hook)?;
        self.model.as_mut().on_before_optimizer_step(gradients, hook)
    }

    fn on_train_batch_end(
        &mut self,
        loss: &Tensor,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        if let Some(outcome) = outcome {
            self.interceptor.after_step(self.model.as_ref(), outcome, hook)?;
        }
        self.interceptor.after_batch(loss)?;
        self.model.as_mut().on_train_batch_end(loss, outcome, hook)
    }

    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        self.model.as_mut().on_train_epoch_end(hook)
    }

    fn on_validation_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        self.model.as_mut().on_validation_epoch_end(hook)
    }

    fn on_save_checkpoint(&self, state: &mut State) -> Result<()> {
        self.model.as_ref().on_save_checkpoint(state)
    }

    fn on_load_checkpoint(&mut self, state: &State) -> Result<()> {
        self.model.as_mut().on_load_checkpoint(state)
    }

    fn on_train_end(&mut self) -> Result<()> {
        self.model.as_mut().on_train_end()
    }
}
