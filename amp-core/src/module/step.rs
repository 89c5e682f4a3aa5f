//! The argument through which training and evaluation steps access the run.

use tch::Tensor;

use crate::{
    Result,
    ffi::PausedProducts,
    log::{Log, LogOptions},
    loss::Counted,
    metric::{Metric, MetricState},
    nn::Context,
};

/// Gives a training or evaluation step access to the context of the forward pass, the batch index,
/// the number of applied optimizer steps, and the log.
pub struct Step<'a> {
    pub(super) context: &'a Context,
    pub(super) log: &'a mut Log,
    pub(super) batch_idx: usize,
    pub(super) global_step: u64,
    /// This field is never read. If the step runs inside a step with another context, the guard
    /// keeps this step's matrix products from being reported to the probe of the outer context,
    /// until the guard is dropped.
    _apart: Option<PausedProducts>,
}

impl<'a> Step<'a> {
    /// Creates a step that runs in `context` and logs to `log`.
    pub fn new(context: &'a Context, log: &'a mut Log, batch_idx: usize, global_step: u64) -> Self {
        let _apart = context.pause_others_products();
        Self { context, log, batch_idx, global_step, _apart }
    }

    /// Returns the context with which the step calls its modules.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// Returns the index of the batch in its epoch, counted from 0. A training step that calls this
    /// method does not run as a CUDA graph, because a graph would replay the index with which it
    /// was captured.
    pub fn batch_idx(&self) -> usize {
        self.log.interval().reads("batch_idx");
        self.batch_idx
    }

    /// Returns the number of optimizer steps applied so far. A training step that calls this method
    /// does not run as a CUDA graph, because a graph would replay the number with which it was
    /// captured.
    pub fn global_step(&self) -> u64 {
        self.log.interval().reads("global_step");
        self.global_step
    }

    /// Returns `batch_idx` and `global_step`, for code that creates another `Step` for the same
    /// batch.
    #[doc(hidden)]
    pub fn place(&self) -> (usize, u64) {
        (self.batch_idx, self.global_step)
    }

    /// Logs a scalar that belongs to `batch_size` examples, without waiting for the device.
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

    /// Logs the loss of a batch, without waiting for the device. `counted` is the weight of the
    /// loss in the epoch's mean.
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

    /// Logs a metric of the batch. The epoch's value is computed from the merged states of all
    /// batches.
    ///
    /// # Errors
    /// When the metric does not support the shapes of `output` and `target`.
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

    #[doc(hidden)]
    pub fn metric_state(
        &mut self,
        name: &str,
        metric: &dyn Metric,
        state: MetricState,
        options: LogOptions,
    ) -> Result<()> {
        self.log.metric_state(name, metric, state, options)
    }
}
