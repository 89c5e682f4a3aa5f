//! ChainedScheduler (torch/optim/lr_scheduler.py).

use std::rc::Rc;

use super::{Intervals, Rates, Schedule};
use crate::Result;

/// Applies several schedules to the same rate. Each schedule gets the rate that the previous
/// schedule returned (ChainedScheduler).
///
/// ```
/// use amp_core::optim::{ChainedScheduler, ConstantLr, ExponentialLr};
/// let schedule = ChainedScheduler::new(ConstantLr { factor: 0.1, total_iters: 20 })
///     .then(ExponentialLr { gamma: 0.9 });
/// ```
///
/// Some schedules, such as [`LambdaLr`](super::LambdaLr), compute the rate only from the
/// optimizer's initial rate. As in torch, such a schedule discards the effect of the earlier
/// schedules in the chain.
#[derive(Clone)]
pub struct ChainedScheduler(Vec<Rc<dyn Link>>);

impl ChainedScheduler {
    /// Starts a chain with its first schedule.
    pub fn new(first: impl Schedule) -> Self {
        Self(vec![Rc::new(first)])
    }

    /// Adds a schedule to the chain, which changes the rates that the previous schedules returned.
    #[must_use]
    pub fn then(mut self, next: impl Schedule) -> Self {
        self.0.push(Rc::new(next));
        self
    }
}

/// The methods of [`Schedule`] as a dyn-compatible trait, so that a chain can contain several
/// types.
trait Link {
    fn check(&self) -> Result<()>;
    fn note(&self, planned: Option<Intervals>) -> Option<String>;
    fn rates(&self, passed: i64, base: Rates, last: Rates) -> Rates;
}

impl<S: Schedule> Link for S {
    fn check(&self) -> Result<()> {
        Schedule::check(self)
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        Schedule::note(self, planned)
    }

    fn rates(&self, passed: i64, base: Rates, last: Rates) -> Rates {
        Schedule::rates(self, passed, base, last)
    }
}

impl Schedule for ChainedScheduler {
    const NAME: &'static str = "ChainedScheduler";

    fn check(&self) -> Result<()> {
        self.0.iter().try_for_each(|link| link.check())
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        self.0.iter().find_map(|link| link.note(planned))
    }

    fn rates(&self, passed: i64, base: Rates, last: Rates) -> Rates {
        self.0.iter().fold(last, |last, link| link.rates(passed, base, last))
    }
}
