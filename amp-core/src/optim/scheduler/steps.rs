//! Schedules that multiply the rate by `gamma` after certain numbers of steps or epochs.

use super::{Rates, Schedule, positive, within};
use crate::{Error, Result};

fn factor(gamma: f64) -> Result<()> {
    within("gamma", gamma, gamma >= 0.0, "at least 0")
}

/// Multiplies the rate by gamma every step_size intervals, which are steps or epochs (StepLR).
///
/// ```
/// use amp_core::optim::StepLr;
/// let schedule = StepLr { step_size: 30, gamma: 0.1 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLr {
    /// The number of intervals (steps or epochs) after which the rate is multiplied by `gamma`
    /// again.
    pub step_size: i64,
    /// The factor.
    pub gamma: f64,
}

impl Default for StepLr {
    fn default() -> Self {
        Self { step_size: 1, gamma: 0.1 }
    }
}

impl Schedule for StepLr {
    const NAME: &'static str = "StepLR";

    fn check(&self) -> Result<()> {
        positive("step_size", self.step_size)?;
        factor(self.gamma)
    }

    fn rates(&self, t: i64, _: Rates, last: Rates) -> Rates {
        match t > 0 && t % self.step_size == 0 {
            true => Rates { lr: last.lr * self.gamma, ..last },
            false => last,
        }
    }
}

/// Multiplies the rate by gamma at each milestone (MultiStepLR).
///
/// ```
/// use amp_core::optim::MultiStepLr;
/// let schedule = MultiStepLr { milestones: vec![30, 80], gamma: 0.1 };
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MultiStepLr {
    /// The numbers of intervals (steps or epochs) after which the rate changes, counted from the
    /// start and in ascending order. If a number occurs twice, the rate is multiplied twice.
    pub milestones: Vec<i64>,
    /// The factor.
    pub gamma: f64,
}

impl Default for MultiStepLr {
    fn default() -> Self {
        Self { milestones: Vec::new(), gamma: 0.1 }
    }
}

impl Schedule for MultiStepLr {
    const NAME: &'static str = "MultiStepLR";

    fn check(&self) -> Result<()> {
        let milestones = &self.milestones;
        if !milestones.is_sorted() || milestones.first().is_none_or(|first| *first < 1) {
            return Err(Error::config(format!(
                "scheduler: milestones are {milestones:?}, but must be positive numbers in \
                 ascending order"
            )));
        }
        factor(self.gamma)
    }

    fn rates(&self, t: i64, _: Rates, last: Rates) -> Rates {
        let times = self.milestones.iter().filter(|milestone| **milestone == t).count();
        match times {
            0 => last,
            _ => Rates { lr: last.lr * self.gamma.powf(times as f64), ..last },
        }
    }
}

/// Multiplies the rate by gamma after every interval, a step or an epoch (ExponentialLR).
///
/// ```
/// use amp_core::optim::ExponentialLr;
/// let schedule = ExponentialLr { gamma: 0.95 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExponentialLr {
    /// The factor.
    pub gamma: f64,
}

impl Schedule for ExponentialLr {
    const NAME: &'static str = "ExponentialLR";

    fn check(&self) -> Result<()> {
        factor(self.gamma)
    }

    fn rates(&self, t: i64, _: Rates, last: Rates) -> Rates {
        match t {
            0 => last,
            _ => Rates { lr: last.lr * self.gamma, ..last },
        }
    }
}
