//! [`LightningModule`]: what the derive generates and the trainer drives.

mod manual;
mod media;
mod step_access;

pub(crate) use manual::{Done, Update};
pub use manual::{ManualOptimizer, ManualStep, first_loss};
pub use step_access::StepAccess;

use tch::{Device, Tensor};

use crate::{
    Error, Result,
    data::AnyBatch,
    ffi::PausedProducts,
    log::{Log, LogOptions},
    loss::{Counted, MeanOver},
    metric::{Metric, Reduction},
    nn::{Context, Visit},
    optim::{Optimizers, Scheduled, TrainingPlan},
    precision::{Gradients, StepOutcome, Unscaled},
    state::State,
};

/// What a loss is a mean over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LossScope {
    /// The batch's examples, each by its weight: the mean of the losses of parts is the batch's.
    Examples,
    /// The batch as a whole, whose examples are compared with each other, as in a contrastive loss: a
    /// batch never runs in parts.
    Batch,
    /// Either. A batch runs in parts where memory is short, and a note says so.
    #[default]
    Unknown,
}

impl LossScope {
    /// The scope of a loss whose mean is over this.
    pub fn of(over: &MeanOver<'_>) -> Self {
        match over {
            MeanOver::Batch => Self::Batch,
            MeanOver::Examples | MeanOver::Classes { .. } | MeanOver::Weights(_) => Self::Examples,
        }
    }
}

/// Hyperparameters by name, as saved beside weights.
pub type Hyperparameters = serde_json::Map<String, serde_json::Value>;

/// A model with its loss, metrics and optimizer: the unit that is trained and verified.
///
/// Derive it with [`derive(LightningModule)`](derive@crate::LightningModule); every step below
/// can be overridden there.
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
    /// The struct's name.
    fn name(&self) -> &'static str;

    /// The hyperparameters the model was built with.
    fn hyperparameters(&self) -> Hyperparameters;

    /// Computes the loss of one batch and logs what is declared. Runs inside the policy's
    /// autocast region; the backward pass is the trainer's. A model of one type of batch takes it with
    /// [`BatchType::from_any`](crate::data::BatchType::from_any).
    ///
    /// Returns the loss, a scalar.
    ///
    /// # Errors
    /// When the forward pass or the loss fails.
    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        let _ = (batch, step);
        Err(no_step(self.name(), "training_step"))
    }

    /// What the loss of a batch counts among the losses that it is averaged with, where several batches, or
    /// parts of one, make a step: their gradient is the large batch's when each counts what its mean is
    /// over. The derive answers by the loss's [`mean_over`](crate::loss::Loss::mean_over) or `counts = …`.
    /// Otherwise it is the batch's [weight](AnyBatch::weight).
    ///
    /// # Errors
    /// When weights or targets cannot be read from the device.
    fn loss_weight(&self, batch: &AnyBatch) -> Result<f64> {
        batch.weight()
    }

    /// What the loss is a mean over, which decides whether a batch that memory is short for may run in
    /// parts. The derive answers for the losses it has, and `#[loss(with = …, of = batch)]` or
    /// `of = examples` for others.
    fn loss_scope(&self) -> LossScope {
        LossScope::Unknown
    }

    /// How the training metric of this name is computed from what was kept of its batches, for runs that are resumed
    /// at the end of an epoch: a function is not saved. The derive answers for what it declares; `None` for others.
    fn reduction(&self, name: &str) -> Option<Reduction> {
        let _ = name;
        None
    }

    /// Whether the model runs backward passes and optimizers itself, in
    /// [`manual_step`](Self::manual_step) in place of [`training_step`](Self::training_step)
    /// (Lightning's `automatic_optimization = False`).
    fn optimizes_manually(&self) -> bool {
        false
    }

    /// Does one batch: forward and backward passes and updates, in any number and order.
    ///
    /// # Errors
    /// When any of these fails.
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
    /// When the forward pass or the loss fails, or the model has no such step.
    fn test_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        let _ = (batch, step);
        Err(no_step(self.name(), "test_step"))
    }

    /// What the model predicts for a batch, without gradients: one tensor or several, dimension 0
    /// counting the examples.
    ///
    /// # Errors
    /// When the forward pass fails, or the model has no such step.
    fn predict_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<AnyBatch> {
        let _ = (batch, step);
        Err(no_step(self.name(), "predict_step"))
    }

    /// The optimizers and their schedules; each parameter belongs to one of them.
    ///
    /// # Errors
    /// When an option is out of range.
    fn configure_optimizers(&self, plan: &TrainingPlan) -> Result<Optimizers>;

    /// How near each step this model has to be, which decides whether steps may run as CUDA
    /// graphs. The derive answers for what it generates.
    fn step_access(&self) -> StepAccess {
        StepAccess::Within("the model's steps are written by hand")
    }

    /// Before the first epoch.
    ///
    /// # Errors
    /// An error ends the run; so it does in every hook.
    fn on_train_start(&mut self) -> Result<()> {
        Ok(())
    }

    /// Before an epoch's first batch.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// Before the step of each optimizer: its gradients are unscaled and not yet clipped. After
    /// an overflow some are not finite, and the step will be skipped.
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

    /// After a batch, with what the training step returned, detached, and what became of the
    /// optimizer step; `None` while gradients are only accumulated. Where the step ran as a CUDA
    /// graph, the loss is on the host: reading it does not wait for the device.
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

    /// After an epoch's last batch, before its values are read.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// After an epoch's validation, before its values are read.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_validation_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        let _ = hook;
        Ok(())
    }

    /// Adds what the model needs besides its tensors to a checkpoint.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_save_checkpoint(&self, state: &mut State) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// Takes back what [`on_save_checkpoint`](Self::on_save_checkpoint) added; the tensors are
    /// there already.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_load_checkpoint(&mut self, state: &State) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// After the last epoch.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_train_end(&mut self) -> Result<()> {
        Ok(())
    }
}

fn no_step(model: &str, step: &str) -> Error {
    Error::config(format!("`{model}` has no {step}: add one, or train without data for it"))
}

/// What a hook sees of the run, and where it logs.
pub struct Hook<'a> {
    /// From 0.
    pub epoch: i64,
    /// Optimizer steps applied so far.
    pub global_step: u64,
    /// The loss scale; `None` where the precision has none.
    pub scale: Option<f64>,
    /// Where the run computes.
    pub device: Device,
    pub(crate) optimizers: &'a [Scheduled],
    pub(crate) log: &'a mut Log,
}

impl Hook<'_> {
    /// The optimizers with their schedules.
    pub fn optimizers(&self) -> &[Scheduled] {
        self.optimizers
    }

    /// Logs a scalar; nothing is read back to the host here.
    ///
    /// # Errors
    /// When `value` is not a scalar.
    pub fn log(&mut self, name: &str, value: &Tensor, options: LogOptions) -> Result<()> {
        self.log.of_hook(name, value, options)
    }

    /// Logs a number of the host's.
    ///
    /// # Errors
    /// When libtorch has no room for it.
    pub fn log_number(&mut self, name: &str, value: f64, options: LogOptions) -> Result<()> {
        self.log.of_hook(name, &Tensor::from(value), options)
    }
}

/// What a step sees besides its batch.
pub struct Step<'a> {
    context: &'a Context,
    log: &'a mut Log,
    /// The batch's index in its epoch.
    pub batch_idx: usize,
    /// Optimizer steps applied so far.
    pub global_step: u64,
    /// A step within another's training step has a context of its own.
    _apart: Option<PausedProducts>,
}

impl<'a> Step<'a> {
    /// A step that runs under `context` and logs into `log`.
    pub fn new(context: &'a Context, log: &'a mut Log, batch_idx: usize, global_step: u64) -> Self {
        let _apart = context.pause_others_products();
        Self { context, log, batch_idx, global_step, _apart }
    }

    /// The forward pass's context.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// Logs a scalar that belongs to `batch_size` examples; nothing is read back to the host here.
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

    /// Logs the loss of a batch that counts so much in the epoch's mean; nothing is read back to the host
    /// here.
    ///
    /// # Errors
    /// When `value` is not a scalar.
    pub fn log_loss(
        &mut self,
        name: &str,
        value: &Tensor,
        counted: &Counted,
        options: LogOptions,
    ) -> Result<()> {
        self.log.loss(name, value, counted, options)
    }

    /// Logs a metric of the batch; the epoch's value is computed from what all batches gave.
    ///
    /// # Errors
    /// When shapes do not fit the metric.
    pub fn metric(
        &mut self,
        name: &str,
        metric: &dyn Metric,
        output: &Tensor,
        target: &Tensor,
        options: LogOptions,
    ) -> Result<()> {
        self.log.metric(name, metric, output, target, options)
    }
}

#[cfg(test)]
mod tests;
