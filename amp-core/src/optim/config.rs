//! An optimizer and its schedule as options.

use super::{BuildOptimizer, BuildScheduler, Interval, Scheduled, WeightUpdate};
use crate::{Error, Result, nn::Parameter};

/// An optimizer and, optionally, its schedule: options only, no state.
pub struct OptimizerConfig {
    optimizer: Box<dyn BuildOptimizer>,
    scheduler: Option<(Box<dyn BuildScheduler>, Interval)>,
}

impl OptimizerConfig {
    /// This optimizer at a constant rate.
    pub fn new(optimizer: impl BuildOptimizer + 'static) -> Self {
        Self { optimizer: Box::new(optimizer), scheduler: None }
    }

    /// Adds a schedule.
    #[must_use]
    pub fn with_scheduler(
        mut self,
        scheduler: impl BuildScheduler + 'static,
        interval: Interval,
    ) -> Self {
        self.scheduler = Some((Box::new(scheduler), interval));
        self
    }

    /// Builds both over `parameters`; the schedule's first rate is already set.
    ///
    /// # Errors
    /// When an option is out of range or there is nothing to train.
    pub fn build(self, parameters: Vec<Parameter>) -> Result<Scheduled> {
        if parameters.is_empty() {
            return Err(Error::config("the model has no parameters: give it at least one layer"));
        }
        let optimizer = self.optimizer.build_with(parameters, WeightUpdate::default())?;
        Scheduled::new(optimizer, self.scheduler)
    }
}
