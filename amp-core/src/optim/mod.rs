//! Optimizers and learning-rate schedules, with the formulas of torch.optim and with fused kernels.

mod adafactor;
mod adam;
mod algorithm;
mod chunks;
mod config;
mod engine;
mod groups;
mod kernel_batch;
mod lamb;
mod lion;
mod muon;
mod notes;
mod number;
mod patterns;
mod rmsprop;
#[cfg(test)]
mod rules_on_device;
mod saved;
mod scheduled;
mod scheduler;
mod selection;
mod sgd;
mod state;
mod step_tensors;
mod weight_update;
mod working_tensors;

pub use crate::optimizer::{Capabilities, OnDevice, Optimizer, Rates};
pub use adafactor::Adafactor;
pub use adam::{Adam, AdamW};
pub use algorithm::Algorithm;
pub use config::{OptimizerConfig, Optimizers};
pub use groups::ParamGroups;
pub use lamb::Lamb;
pub use lion::Lion;
pub use muon::{AdjustLr, Muon};
pub use number::Number;
pub(crate) use patterns::Patterns;
pub use rmsprop::RmsProp;
pub use scheduled::{GroupRates, Scheduled};
pub use scheduler::{
    BuildScheduler, ChainedScheduler, ConstantLr, CosineAnnealing, CosineAnnealingWarmRestarts,
    Decay, ExponentialLr, Intervals, LambdaLr, LinearLr, MultiStepLr, OneCycle, PolynomialLr,
    ReduceLrOnPlateau, Schedule, Scheduler, SequentialLr, StepLr, ThresholdMode, WarmupCosine, Wsd,
};
pub use selection::Selection;
pub use sgd::Sgd;
pub use state::{Moments, Slot};
pub use step_tensors::{ParameterStep, StepTensors};
pub use weight_update::{Storage, WeightUpdate};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, parameter::Parameter};

/// The planned length of a run, which is known before the run starts.
/// [`configure_optimizers`](crate::LightningModule::configure_optimizers) may use these numbers in
/// its options, for example as the length of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingPlan {
    /// The number of epochs after which training ends at the latest.
    pub max_epochs: i64,
    /// The number of optimizer steps in all epochs together, at most `max_steps`. Lightning has a
    /// property of this name.
    pub estimated_stepping_batches: i64,
}

/// When a schedule advances to its next rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// After every optimizer step that was applied, and after skipped steps only with
    /// [`skipped_step_advances`](crate::trainer::RecoveryConfig::skipped_step_advances).
    Step,
    /// After every epoch, including the epoch's validation.
    Epoch,
}

/// Options from which an optimizer for given parameters can be built.
pub trait BuildOptimizer {
    /// Checks the options and creates the optimizer with its state. `storage` says how 16-bit
    /// weights are updated and how running averages are stored.
    ///
    /// # Errors
    /// When an option is out of range, or `storage` does not support the parameters' dtype.
    fn build_with(
        &self,
        parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>>;

    /// Calls [`build_with`](Self::build_with) such that weights and running averages are stored as
    /// in PyTorch.
    ///
    /// # Errors
    /// When an option is out of range.
    fn build(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>> {
        self.build_with(parameters, Storage::default())
    }
}

/// Checks an option of an optimizer. `holds` says whether `value` is in its range. `range`
/// describes the range in the error message.
///
/// # Errors
/// When `holds` is false, or the value is not finite.
///
/// ```
/// # use amp_core::optim::require;
/// let said = require(false, "lr", -1.0, "at least 0").unwrap_err().to_string();
/// assert!(said.contains("optimizer: lr is -1, but must be at least 0"));
/// ```
pub fn require(holds: bool, option: &str, value: f64, range: &str) -> Result<()> {
    if holds && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(format!("optimizer: {option} is {value}, but must be {range}")))
}

fn require_betas((beta1, beta2): (f64, f64)) -> Result<()> {
    require((0.0..1.0).contains(&beta1), "betas.0", beta1, "in [0, 1)")?;
    require((0.0..1.0).contains(&beta2), "betas.1", beta2, "in [0, 1)")
}
