//! How gradients are accumulated and clipped, and which weights are trained and averaged.

use super::{Averaging, Freeze};
use crate::{Error, Result, optim::TrainingPlan, precision::Clip};

/// How gradients are accumulated and clipped, and which weights are trained and averaged.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizationConfig {
    /// How gradients are clipped. `None` means that gradients are not clipped.
    pub gradient_clip: Option<Clip>,
    /// The number of batches whose gradients are added up for one optimizer step.
    pub accumulate_grad_batches: i64,
    /// The parameters that are not trained, for the whole run or until an epoch or step. A frozen
    /// parameter has no gradient and no optimizer state. The running statistics of a frozen batch
    /// norm still change.
    pub freeze: Vec<Freeze>,
    /// How weights are averaged over the run. `None` means that no average is computed.
    pub averaging: Option<Averaging>,
    /// The number of epochs and steps for which the learning-rate schedules are built. `None` means
    /// the length of this run. For a short trial of a longer run, set this option to the
    /// [`training_plan`](super::TrainerConfig::training_plan) of the longer run, so that the trial
    /// has the learning rates of the longer run's first steps.
    pub plan: Option<TrainingPlan>,
}

impl Default for OptimizationConfig {
    fn default() -> Self {
        Self {
            gradient_clip: None,
            accumulate_grad_batches: 1,
            freeze: Vec::new(),
            averaging: None,
            plan: None,
        }
    }
}

impl OptimizationConfig {
    pub(super) fn check(&self) -> Result<()> {
        if self.accumulate_grad_batches < 1 {
            return Err(Error::config(format!(
                "accumulate_grad_batches is {}, but must be at least 1",
                self.accumulate_grad_batches
            )));
        }
        self.averaging.map_or(Ok(()), Averaging::check)?;
        self.gradient_clip.map(Clip::validated).transpose().map(drop)
    }
}
