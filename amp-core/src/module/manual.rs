//! Training steps in which the model itself runs the backward passes and steps its optimizers.

use tch::Tensor;

use crate::{
    Error, LightningModule, Result, Step,
    data::AnyBatch,
    log::{Log, LogOptions},
    nn::Context,
    optim::TrainingPlan,
    parameter::Frozen,
    precision::{Clip, Gradients, Policy, Scaled, StepOutcome, Unscaled},
};

/// The context of one batch for a model that [optimizes
/// manually](crate::LightningModule::optimizes_manually). For one batch, the model runs any number
/// of forward passes under autocast, of backward passes of scaled losses, and of steps of any of
/// its optimizers. The loss scale is updated once, after the batch, with the results of all
/// backward passes.
///
/// The types enforce the order backward, unscale, clip, step. A backward pass returns
/// [`Gradients<Scaled>`](Gradients). Only [`unscale`](ManualOptimizer::unscale) turns these into
/// gradients that can be clipped and given to [`step`](ManualOptimizer::step).
///
/// ```no_run,standalone_crate
/// use amp_core::{prelude::*, trainer::ManualStep};
///
/// /// Two critic steps for each step of the generator.
/// fn adversarial(gan: &mut Gan, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
///     const CRITIC: usize = 0;
///     const GENERATOR: usize = 1;
///     for _ in 0..2 {
///         let loss = step.forward(|step| {
///             let cx = step.context();
///             let made = cx.call("generator", None, &gan.generator, &batch.input)?.detach();
///             let scores = |x: &Tensor| Ok::<_, Error>(gan.critic.forward(x, cx)?.f_mean(None)?);
///             Ok(scores(&made)?.f_sub(&scores(&batch.target)?)?)
///         })?;
///         let mut critic = step.optimizer(CRITIC)?;
///         let gradients = critic.backward(&loss)?;
///         let gradients = critic.unscale(gradients)?;
///         let _ = gradients.clip_grad_norm(1.0)?;
///         let _ = critic.step(gradients)?;
///     }
///     let loss = step.forward(|step| {
///         let cx = step.context();
///         let made = cx.call("generator", None, &gan.generator, &batch.input)?;
///         Ok(gan.critic.forward(&made, cx)?.f_mean(None)?.f_neg()?)
///     })?;
///     step.log("train_loss", &loss, batch.len(), LogOptions::ON_EPOCH)?;
///     step.optimizer(GENERATOR)?.minimize(&loss, None).map(drop)
/// }
///
/// struct Gan {
///     critic: Sequential,
///     generator: Sequential,
/// }
/// # fn main() {}
/// ```
pub struct ManualStep<'s> {
    policy: Policy,
    context: &'s Context,
    pub(super) log: &'s mut Log,
    scheduled: Updates<'s>,
    batch_idx: usize,
    global_step: u64,
    outcomes: Vec<StepOutcome>,
    loss: Option<Tensor>,
    accumulated: bool,
}

type Updates<'s> = &'s mut dyn Update;

/// The operations of a manual step on the optimizers of a run. As a trait object, so that
/// [`ManualStep`] has only one lifetime parameter.
pub(crate) trait Update {
    fn count(&self) -> usize;
    fn backward(&mut self, at: usize, loss: &Tensor) -> Result<Gradients<Scaled>>;
    fn accumulate(&mut self, at: usize, loss: &Tensor) -> Result<Gradients<Scaled>>;
    fn unscale(&mut self, at: usize, gradients: Gradients<Scaled>) -> Result<Gradients<Unscaled>>;
    fn step(&mut self, at: usize, gradients: Gradients<Unscaled>) -> Result<StepOutcome>;
    fn parameters(&self, at: usize) -> Vec<Tensor>;
}

/// The results of a manual step for the trainer: the last loss, and the outcome of each optimizer
/// step.
pub(crate) struct Done {
    /// The loss of the last backward pass, detached from the autograd graph. `None` if the manual
    /// step ran no backward pass.
    pub(crate) loss: Option<Tensor>,
    pub(crate) outcomes: Vec<StepOutcome>,
    /// Whether gradients were added for a step in a later batch.
    pub(crate) accumulated: bool,
}

impl<'s> ManualStep<'s> {
    pub(crate) fn new(
        policy: Policy,
        context: &'s Context,
        log: &'s mut Log,
        scheduled: Updates<'s>,
        batch_idx: usize,
        global_step: u64,
    ) -> Self {
        let (outcomes, loss, accumulated) = (Vec::new(), None, false);
        Self {
            policy,
            context,
            log,
            scheduled,
            batch_idx,
            global_step,
            outcomes,
            loss,
            accumulated,
        }
    }

    pub(crate) fn done(self) -> Done {
        Done { loss: self.loss, outcomes: self.outcomes, accumulated: self.accumulated }
    }

    /// Returns the index of the batch in its epoch, counted from 0.
    pub fn batch_idx(&self) -> usize {
        self.batch_idx
    }

    /// Returns the number of batches so far in which an optimizer has stepped. A batch with several
    /// optimizer steps counts once.
    pub fn global_step(&self) -> u64 {
        self.global_step
    }

    /// Runs a forward pass under autocast, as the run's precision defines it. Run backward passes
    /// outside of `run`, so that they do not run under autocast.
    ///
    /// # Errors
    /// When autocast cannot be switched on, or `run` fails.
    pub fn forward<T>(&mut self, run: impl FnOnce(&mut Step<'_>) -> Result<T>) -> Result<T> {
        let _autocast = self.policy.autocast()?;
        run(&mut Step::new(self.context, self.log, self.batch_idx, self.global_step))
    }

    /// Logs a scalar that belongs to `batch_size` examples. The value stays on the device until it
    /// is reported.
    ///
    /// # Errors
    /// When `value` is not a scalar.
    pub fn log(
        &mut self,
        name: &str,
        value: &Tensor,
        batch_size: i64,
        options: LogOptions,
    ) -> Result<()> {
        self.log.value(name, value, batch_size, options)
    }

    /// Returns the optimizer at this index of
    /// [`configure_optimizers`](crate::LightningModule::configure_optimizers).
    ///
    /// # Errors
    /// When the model has no optimizer with this index.
    pub fn optimizer(&mut self, at: usize) -> Result<ManualOptimizer<'_, 's>> {
        let count = self.scheduled.count();
        if at >= count {
            return Err(Error::config(format!(
                "there is no optimizer {at}: the model has {count}, counted from 0"
            )));
        }
        Ok(ManualOptimizer { step: self, at })
    }

    /// Runs `body` while only the parameters of the optimizer `at` require gradients (Lightning's
    /// `toggle_optimizer`), so that backward passes compute only the gradients of these parameters.
    ///
    /// # Errors
    /// When there is no optimizer with the index `at`, or `body` fails.
    pub fn toggled<T>(
        &mut self,
        at: usize,
        body: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let _ = self.optimizer(at)?;
        // No parameter belongs to two optimizers, so no parameter of the optimizer `at` is frozen.
        let others = (0..self.scheduled.count()).filter(|other| *other != at);
        let others: Vec<Tensor> = others
            .flat_map(|other| self.scheduled.parameters(other))
            .filter(|tensor| tensor.requires_grad())
            .collect();
        let _frozen = Frozen::new(others);
        body(self)
    }
}

/// Returns a loss of the model on `batch`, with its autograd graph: the result of
/// [`training_step`](LightningModule::training_step), or for a model that optimizes manually the
/// loss that [`manual_step`](LightningModule::manual_step) first passes to a backward pass. The
/// manual step ends there, so no parameter is updated.
///
/// # Errors
/// When the step fails, or a manual step runs no backward pass.
pub fn first_loss(
    model: &mut dyn LightningModule,
    batch: &AnyBatch,
    step: &mut Step<'_>,
) -> Result<Tensor> {
    let _products = step.context.watch_products()?;
    if !model.optimizes_manually() {
        return model.training_step(batch, step);
    }
    let plan = TrainingPlan { max_epochs: 1, estimated_stepping_batches: 1 };
    let count = model.configure_optimizers(&plan)?.count();
    let mut first = First { count, loss: None };
    let (policy, index, global_step) = (step.context.policy(), step.batch_idx, step.global_step);
    let mut manual =
        ManualStep::new(policy, step.context, step.log, &mut first, index, global_step);
    let ended = model.manual_step(batch, &mut manual);
    match (first.loss, ended) {
        (Some(loss), _) => Ok(loss),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => {
            let name = model.name();
            Err(Error::config(format!("the manual step of `{name}` ran no backward pass")))
        }
    }
}

/// Replaces the optimizers when only the first loss of a manual step is needed. Keeps the loss of
/// the first backward pass, and then ends the step with an error.
struct First {
    count: usize,
    loss: Option<Tensor>,
}

impl First {
    /// Ends the step with an error. Every later backward pass or optimizer step also fails, so that
    /// the step cannot go on if the model ignores the error.
    fn end<T>() -> Result<T> {
        Err(Error::config(
            "this manual step ends at its first backward pass: return this error from \
             `manual_step`",
        ))
    }
}

impl Update for First {
    fn count(&self) -> usize {
        self.count
    }

    fn backward(&mut self, _: usize, loss: &Tensor) -> Result<Gradients<Scaled>> {
        self.loss.get_or_insert_with(|| loss.shallow_clone());
        Self::end()
    }

    fn accumulate(&mut self, at: usize, loss: &Tensor) -> Result<Gradients<Scaled>> {
        self.backward(at, loss)
    }

    fn unscale(&mut self, _: usize, _: Gradients<Scaled>) -> Result<Gradients<Unscaled>> {
        Self::end()
    }

    fn step(&mut self, _: usize, _: Gradients<Unscaled>) -> Result<StepOutcome> {
        Self::end()
    }

    fn parameters(&self, _: usize) -> Vec<Tensor> {
        Vec::new()
    }
}

/// An optimizer in a [manual step](ManualStep).
pub struct ManualOptimizer<'a, 's> {
    step: &'a mut ManualStep<'s>,
    at: usize,
}

impl ManualOptimizer<'_, '_> {
    /// Drops the gradients of this optimizer's parameters and runs the backward pass of the scaled
    /// loss. The backward pass also adds gradients to the parameters of other optimizers. These
    /// gradients remain until `backward` of those optimizers drops them. Within
    /// [`ManualStep::toggled`] the gradients of other optimizers' parameters are not computed.
    ///
    /// # Errors
    /// When the loss is not a scalar or depends on no parameter.
    pub fn backward(&mut self, loss: &Tensor) -> Result<Gradients<Scaled>> {
        self.step.loss = Some(loss.f_detach()?);
        self.step.scheduled.backward(self.at, loss)
    }

    /// Runs the backward pass of the scaled loss, and adds its gradients to those of the previous
    /// calls of `accumulate` for this optimizer, also in earlier batches. The first call after a
    /// call of [`unscale`](Self::unscale) or [`backward`](Self::backward) begins anew.
    ///
    /// The sum of the gradients of N losses is the gradient of the sum of the losses. For the mean,
    /// divide each loss by N. If the loss scale changes between two calls, because another optimizer
    /// has stepped, the sum is multiplied by the ratio of the two scales. Gradients that no step has
    /// used when an epoch ends stay for the next epoch, but a checkpoint does not contain them. If
    /// the backward passes of other optimizers reach this optimizer's parameters, run them in
    /// [`ManualStep::toggled`].
    ///
    /// ```no_run
    /// use amp_core::{prelude::*, trainer::ManualStep};
    ///
    /// /// One step of the optimizer for each two batches.
    /// fn every_second(net: &Linear, batch: &Batch, step: &mut ManualStep<'_>) -> Result<()> {
    ///     let loss = step.forward(|step| {
    ///         let output = step.context().call("net", None, net, &batch.input)?;
    ///         Ok(output.f_mse_loss(&batch.target, tch::Reduction::Mean)?)
    ///     })?;
    ///     let is_last = step.batch_idx() % 2 == 1;
    ///     let mut optimizer = step.optimizer(0)?;
    ///     let gradients = optimizer.accumulate(&loss.f_div_scalar(2.0)?)?;
    ///     if is_last {
    ///         let gradients = optimizer.unscale(gradients)?;
    ///         let _ = optimizer.step(gradients)?;
    ///     }
    ///     Ok(())
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When the loss is not a scalar or depends on no parameter.
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<Gradients<Scaled>> {
        self.step.loss = Some(loss.f_detach()?);
        self.step.accumulated = true;
        self.step.scheduled.accumulate(self.at, loss)
    }

    /// Divides the gradients by the loss scale, and checks whether all gradients are finite.
    ///
    /// # Errors
    /// When none of the optimizer's parameters has a gradient.
    pub fn unscale(&mut self, gradients: Gradients<Scaled>) -> Result<Gradients<Unscaled>> {
        self.step.scheduled.unscale(self.at, gradients)
    }

    /// Steps the optimizer unless a gradient is not finite. A learning-rate schedule that advances
    /// per step (not per epoch) advances too.
    ///
    /// # Errors
    /// When the gradients belong to another optimizer.
    pub fn step(&mut self, gradients: Gradients<Unscaled>) -> Result<StepOutcome> {
        let outcome = self.step.scheduled.step(self.at, gradients)?;
        self.step.outcomes.push(outcome.clone());
        Ok(outcome)
    }

    /// Updates the optimizer's parameters once: runs [`backward`](Self::backward),
    /// [`unscale`](Self::unscale), the clipping if `clip` is given, and [`step`](Self::step).
    ///
    /// # Errors
    /// When the loss is not a scalar or depends on none of the optimizer's parameters, or when
    /// libtorch fails.
    pub fn minimize(&mut self, loss: &Tensor, clip: Option<Clip>) -> Result<StepOutcome> {
        let gradients = self.backward(loss)?;
        let gradients = self.unscale(gradients)?;
        clip.map_or(Ok(()), |clip| gradients.clip(clip))?;
        self.step(gradients)
    }

    /// Returns the optimizer's parameters. While [`ManualStep::toggled`] runs for this optimizer,
    /// the parameters of all other optimizers are frozen.
    pub fn parameters(&self) -> Vec<Tensor> {
        self.step.scheduled.parameters(self.at)
    }
}
