//! Optimizers and learning-rate schedulers with torch.optim's rules, on fused kernels.

mod adam;
mod algorithm;
mod batch;
mod config;
mod engine;
mod groups;
mod lion;
mod moments;
mod parameter_state;
mod parts;
mod patterns;
mod rmsprop;
mod saved;
mod scheduled;
mod scheduler;
mod sgd;
mod weight_update;
mod working;

pub use crate::optimizer::{Abilities, OnDevice, Optimizer, Rates};
pub use adam::{Adam, AdamW};
pub use config::{OptimizerConfig, Optimizers};
pub use groups::ParamGroups;
pub use lion::Lion;
pub use moments::Moments;
pub(crate) use patterns::Patterns;
pub use rmsprop::RmsProp;
pub use scheduled::{GroupRates, Scheduled};
pub use scheduler::{
    BuildScheduler, ChainedScheduler, ConstantLr, CosineAnnealing, CosineAnnealingWarmRestarts,
    Decay, ExponentialLr, LambdaLr, LinearLr, MultiStepLr, OneCycle, PolynomialLr,
    ReduceLrOnPlateau, Schedule, Scheduler, SequentialLr, StepLr, ThresholdMode, WarmupCosine, Wsd,
};
pub use sgd::Sgd;
pub use weight_update::{Storage, WeightUpdate};

use groups::build_plainly;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, parameter::Parameter};

/// What [`configure_optimizers`](crate::LightningModule::configure_optimizers) may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingPlan {
    /// Epochs at most.
    pub max_epochs: i64,
    /// Optimizer steps over all epochs, as Lightning's property of this name.
    pub estimated_stepping_batches: i64,
}

/// When a scheduler moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// After every applied optimizer step.
    Step,
    /// After every epoch, when it has been validated.
    Epoch,
}

/// Options of an optimizer that can be built over parameters.
pub trait BuildOptimizer {
    /// Checks the options and makes the state.
    ///
    /// # Errors
    /// When an option is out of range, or `storage` is not for the parameters' dtype.
    fn build_with(
        &self,
        parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>>;

    /// [`build_with`](Self::build_with) PyTorch's way of keeping weights and averages.
    ///
    /// # Errors
    /// When an option is out of range.
    fn build(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>> {
        self.build_with(parameters, Storage::default())
    }
}

/// Refuses an option outside its range, in one wording.
fn require(holds: bool, option: &str, value: f64, range: &str) -> Result<()> {
    if holds && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(format!("optimizer: {option} is {value}, but must be {range}")))
}

fn require_betas((beta1, beta2): (f64, f64)) -> Result<()> {
    require((0.0..1.0).contains(&beta1), "betas.0", beta1, "in [0, 1)")?;
    require((0.0..1.0).contains(&beta2), "betas.1", beta2, "in [0, 1)")
}
