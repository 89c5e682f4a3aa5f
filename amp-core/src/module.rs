//! [`LightningModule`]: what the derive generates and the trainer drives.

use tch::Tensor;

use crate::{
    Result,
    data::Batch,
    log::{Log, LogOptions},
    metric::Metric,
    nn::{Context, Module},
    optim::{OptimizerConfig, TrainingPlan},
};

/// Hyperparameters by name, as saved beside weights.
pub type Hyperparameters = serde_json::Map<String, serde_json::Value>;

/// A model with its loss, metrics and optimizer: the unit that is trained and verified.
///
/// Derive it with [`derive(LightningModule)`](derive@crate::LightningModule); every step below
/// can be overridden there.
pub trait LightningModule: Module {
    /// The struct's name.
    fn name(&self) -> &'static str;

    /// The hyperparameters the model was built with.
    fn hyperparameters(&self) -> Hyperparameters;

    /// Computes the loss of one batch and logs what is declared. Runs inside the policy's
    /// autocast region; the backward pass is the trainer's.
    ///
    /// Returns the loss, a scalar.
    ///
    /// # Errors
    /// When the forward pass or the loss fails.
    fn training_step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor>;

    /// Computes and logs the loss and metrics of one validation batch, without gradients.
    ///
    /// # Errors
    /// When the forward pass or the loss fails.
    fn validation_step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<()>;

    /// The optimizer and its schedule.
    ///
    /// # Errors
    /// When an option is out of range.
    fn configure_optimizers(&self, plan: &TrainingPlan) -> Result<OptimizerConfig>;
}

/// What a step sees besides its batch.
pub struct Step<'a> {
    context: &'a Context,
    log: &'a mut Log,
    /// The batch's index in its epoch.
    pub batch_idx: usize,
    /// Optimizer steps applied so far.
    pub global_step: u64,
}

impl<'a> Step<'a> {
    /// A step that runs under `context` and logs into `log`.
    pub fn new(context: &'a Context, log: &'a mut Log, batch_idx: usize, global_step: u64) -> Self {
        Self { context, log, batch_idx, global_step }
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

    /// Logs a metric of the batch; the epoch's value is computed from the summed counts.
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
