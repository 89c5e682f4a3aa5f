//! What happens to gradients, and which weights are trained.

use super::{Averaging, Freeze};
use crate::{Error, Result, optim::TrainingPlan, precision::Clip};

/// What happens to gradients before they are applied, and which weights are trained and averaged.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizationConfig {
    /// How gradients are clipped; `None` for no clipping.
    pub gradient_clip: Option<Clip>,
    /// The number of batches whose gradients are accumulated into one step.
    pub accumulate_grad_batches: i64,
    /// Parameters that are not trained, for the whole run or until an epoch or step. A frozen
    /// parameter has no gradient and no optimizer state. Batch statistics of its module still
    /// change.
    pub freeze: Vec<Freeze>,
    /// How weights are averaged; `None` for no averages.
    pub averaging: Option<Averaging>,
    /// The length for which the learning-rate schedules are built, or `None` for the length of this
    /// run. In a trial of a longer run, set it to the longer run's
    /// [`training_plan`](super::TrainerConfig::training_plan), because a warm-up may be longer than
    /// the trial.
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
