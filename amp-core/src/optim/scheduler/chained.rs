//! ChainedScheduler (torch/optim/lr_scheduler.py).

use std::rc::Rc;

use super::{Rates, Schedule};
use crate::Result;

/// Schedules that move the same rate, each from what the one before it made of it (ChainedScheduler).
///
/// ```
/// use amp_core::optim::{ChainedScheduler, ConstantLr, ExponentialLr};
/// let schedule = ChainedScheduler::new(ConstantLr { factor: 0.1, total_iters: 20 })
///     .then(ExponentialLr { gamma: 0.9 });
/// ```
///
/// A schedule that computes its rate from the optimizer's alone, as [`LambdaLr`](super::LambdaLr) does, leaves nothing of
/// the ones before it, here as in torch.
#[derive(Clone)]
pub struct ChainedScheduler(Vec<Rc<dyn Link>>);

impl ChainedScheduler {
    /// Begins with this schedule.
    pub fn new(first: impl Schedule) -> Self {
        Self(vec![Rc::new(first)])
    }

    /// Lets this schedule move what the ones before it give.
    #[must_use]
    pub fn then(mut self, next: impl Schedule) -> Self {
        self.0.push(Rc::new(next));
        self
    }
}

/// A schedule of a type that the chain does not name.
trait Link {
    fn check(&self) -> Result<()>;
    fn rates(&self, passed: i64, base: Rates, last: Rates) -> Rates;
}

impl<S: Schedule> Link for S {
    fn check(&self) -> Result<()> {
        Schedule::check(self)
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

    fn rates(&self, passed: i64, base: Rates, last: Rates) -> Rates {
        self.0.iter().fold(last, |last, link| link.rates(passed, base, last))
    }
}
