//! [`LightningModule`]: the trait that the derive implements and the trainer calls.

mod loss_scope;
mod manual;
mod media;
mod step;
mod step_access;

pub use loss_scope::LossScope;
pub(crate) use manual::{Done, Update};
pub use manual::{ManualOptimizer, ManualStep, first_loss};
pub use step::Step;
pub use step_access::StepAccess;

use tch::{Device, Tensor};

use crate::{
    Error, Result,
    data::AnyBatch,
    log::{Log, LogOptions},
    metric::Reduction,
    monitor::Mode,
    nn::Visit,
    optim::{Optimizers, Scheduled, TrainingPlan},
    precision::{Gradients, StepOutcome, Unscaled},
    state::State,
};

/// The hyperparameters of a model by name, as files of weights store them.
pub type Hyperparameters = serde_json::Map<String, serde_json::Value>;

/// A model with its loss, metrics and optimizers, which a [`Trainer`](crate::Trainer) trains.
///
/// Derive the trait with [`derive(LightningModule)`](derive@crate::LightningModule). With
/// attributes you can replace each generated step by your own code.
///
/// ```no_run,standalone_crate
/// use amp_core::prelude::*;
///
/// #[derive(LightningModule)]
/// #[loss(cross_entropy)]
/// #[optimizer(sgd, lr = 0.1)]
/// struct Net {
///     #[hparam(default = 8)]
///     width: i64,
///     #[layer(linear(2, width))]
///     body: Linear,
///     #[layer(linear(width, 2))]
///     head: Linear,
/// }
///
/// # fn main() -> Result<()> {
/// let net = Net::builder().width(16).build()?;
/// assert_eq!(net.hyperparameters()["width"], 16);
/// # Ok(())
/// # }
/// ```
pub trait LightningModule: Visit {
    /// Returns the name of the model's struct.
    fn name(&self) -> &'static str;

    /// Returns the hyperparameters from which the model was built.
    fn hyperparameters(&self) -> Hyperparameters;

    /// Computes the loss of one batch, and logs the loss and the metrics. The trainer calls this
    /// method under autocast, and runs the backward pass afterwards. A model with its own batch
    /// type converts `batch` with [`BatchType::from_any`](crate::data::BatchType::from_any).
    ///
    /// Returns the loss as a scalar tensor.
    ///
    /// # Errors
    /// When the forward pass or the loss fails.
    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        let _ = (batch, step);
        Err(no_step(self.name(), "training_step"))
    }

    /// Returns the weight of this batch's loss in the mean over several batches, or over the
    /// micro-batches of one step. The derive returns the denominator of the loss's mean, for
    /// example the number of targets that are not ignored. The gradient of the step then equals the
    /// gradient of one large batch. The default is the [weight](AnyBatch::weight) of the batch.
    ///
    /// # Errors
    /// When weights or targets cannot be read from the device.
    fn loss_weight(&self, batch: &AnyBatch) -> Result<f64> {
        batch.weight()
    }

    /// Returns whether the loss is a mean over the examples of the batch. The trainer may split a
    /// batch that does not fit into memory unless the result is [`LossScope::Batch`]. The derive
    /// knows the result for amp-core's losses. For a loss of your own, it reads `#[loss(…, of =
    /// …)]`.
    fn loss_scope(&self) -> LossScope {
        LossScope::Unknown
    }

    /// Returns how the value of the training metric `name` is computed from its state. The trainer
    /// needs this if a run is resumed at the end of an epoch, because a checkpoint contains the
    /// state but not the function that computes the value. The derive returns the reduction of a
    /// declared metric, and `None` for any other name.
    fn reduction(&self, name: &str) -> Option<Reduction> {
        let _ = name;
        None
    }

    /// Returns whether smaller or larger values of the metric that is logged as `name` are better.
    /// Early stopping asks for it. The derive returns the [mode](crate::metric::Metric::mode) of a
    /// declared metric, and `None` for any other name.
    fn metric_mode(&self, name: &str) -> Option<Mode> {
        let _ = name;
        None
    }

    /// Returns whether the model runs backward passes and optimizers itself, in
    /// [`manual_step`](Self::manual_step) instead of [`training_step`](Self::training_step)
    /// (Lightning's `automatic_optimization = False`).
    fn optimizes_manually(&self) -> bool {
        false
    }

    /// Trains on one batch: runs forward and backward passes and steps the optimizers.
    ///
    /// # Errors
    /// When a forward pass, a backward pass or an optimizer's step fails.
    fn manual_step(&mut self, batch: &AnyBatch, step: &mut ManualStep<'_>) -> Result<()> {
        let _ = (batch, step);
        Err(no_step(self.name(), "manual_step"))
    }

    /// Computes and logs the loss and metrics of one validation batch, without gradients.
    ///
    /// # Errors
    /// When the forward pass or the loss fails.
    fn validation_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        let _ = (batch, step);
        Err(no_step(self.name(), "validation_step"))
    }

    /// Computes and logs the loss and metrics of one test batch, without gradients.
    ///
    /// # Errors
    /// When the forward pass or the loss fails, or the model has no `test_step`.
    fn test_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        let _ = (batch, step);
        Err(no_step(self.name(), "test_step"))
    }

    /// Returns the model's predictions for a batch, computed without gradients: one or several
    /// tensors, with one row (along dimension 0) for each example.
    ///
    /// # Errors
    /// When the forward pass fails, or the model has no `predict_step`.
    fn predict_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<AnyBatch> {
        let _ = (batch, step);
        Err(no_step(self.name(), "predict_step"))
    }

    /// Returns the optimizers and their schedules. Each parameter belongs to one optimizer.
    ///
    /// # Errors
    /// When an option is out of range.
    fn configure_optimizers(&self, plan: &TrainingPlan) -> Result<Optimizers>;

    /// Returns when the model's own code runs: its hooks, and training steps that are written by
    /// hand. The trainer runs steps as CUDA graphs only if no such code runs within a step. The
    /// derive implements this method for the steps that it generates.
    fn step_access(&self) -> StepAccess {
        StepAccess::InStep("the model does not implement step_access")
    }

    /// Adds to `values` all values that the training step reads, except tensors, for example a loss
    /// weight that a hook raises. A CUDA graph always uses the values with which it was captured,
    /// so the trainer stops using the graph when one of these values has changed. The default adds
    /// the values that [`on_save_checkpoint`](Self::on_save_checkpoint) saves. The derive adds the
    /// `#[state]` and `#[hparam]` fields that the forward pass, the loss or a metric reads.
    ///
    /// # Errors
    /// When a value cannot be saved.
    fn values_in_step(&self, values: &mut State) -> Result<()> {
        self.on_save_checkpoint(values)
    }

    /// Runs once, before the first epoch. In a resumed run it runs after the checkpoint has been
    /// loaded, so the values that it sets replace the loaded values.
    ///
    /// # Errors
    /// An error ends the run, as an error of any hook does.
    fn on_train_start(&mut self) -> Result<()> {
        Ok(())
    }

    /// Runs before the first batch of each epoch.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// Runs before each optimizer's step, when the gradients are unscaled and not yet clipped.
    /// After an overflow, some gradients are not finite, and the step will be skipped.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        let _ = (gradients, hook);
        Ok(())
    }

    /// Runs after a training batch, with the detached loss. `outcome` is the outcome of the
    /// optimizer step, or `None` if the batch only accumulates gradients. If the step ran as a CUDA
    /// graph, the loss is already on the host.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_train_batch_end(
        &mut self,
        loss: &Tensor,
        outcome: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        let _ = (loss, outcome, hook);
        Ok(())
    }

    /// Runs after an epoch's last batch, before the epoch's logged values are read.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// Runs after an epoch's validation, before the validation's logged values are read.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_validation_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// Adds to `state` the values that a checkpoint must contain besides the model's parameters and
    /// buffers.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_save_checkpoint(&self, state: &mut State) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// Restores the values that [`on_save_checkpoint`](Self::on_save_checkpoint) added. The model's
    /// parameters and buffers have already been restored.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_load_checkpoint(&mut self, state: &State) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// Runs once, after the last epoch.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_train_end(&mut self) -> Result<()> {
        Ok(())
    }
}

fn no_step(model: &str, step: &str) -> Error {
    Error::config(format!(
        "`{model}` has no {step}: add one, in a derived model with `#[{step}(…)]`, or run without the \
         data set that needs it"
    ))
}

/// Gives a hook access to the run: its epoch and step, its optimizers and its log.
pub struct Hook<'a> {
    /// The current epoch, counted from 0.
    pub epoch: i64,
    /// The number of optimizer steps applied so far.
    pub global_step: u64,
    /// The current loss scale. `None` if the precision does not scale the loss.
    pub scale: Option<f64>,
    /// The device on which the run trains.
    pub device: Device,
    pub(crate) optimizers: &'a [Scheduled],
    pub(crate) log: &'a mut Log,
}

impl Hook<'_> {
    /// Returns the optimizers of the run with their learning-rate schedules.
    pub fn optimizers(&self) -> &[Scheduled] {
        self.optimizers
    }

    /// Logs a scalar, without waiting for the device.
    ///
    /// # Errors
    /// When `value` is not a scalar.
    pub fn log(&mut self, name: &str, value: &Tensor, options: LogOptions) -> Result<()> {
        self.log.of_hook(name, value, options)
    }

    /// Logs a number that is on the host.
    ///
    /// # Errors
    /// When libtorch cannot allocate memory for the number.
    pub fn log_number(&mut self, name: &str, value: f64, options: LogOptions) -> Result<()> {
        self.log.of_hook(name, &Tensor::from(value), options)
    }
}

#[cfg(test)]
mod tests;
