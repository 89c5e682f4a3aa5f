//! Learning-rate schedules with torch.optim.lr_scheduler's rules and rounding.

mod chained;
mod cosine;
mod factors;
mod one_cycle;
mod plateau;
mod running;
mod sequential;
mod steps;
mod wsd;

pub use chained::ChainedScheduler;
pub use cosine::{CosineAnnealing, CosineAnnealingWarmRestarts, WarmupCosine};
pub use factors::{ConstantLr, LambdaLr, LinearLr, PolynomialLr};
pub use one_cycle::OneCycle;
pub use plateau::{ReduceLrOnPlateau, ThresholdMode};
pub use sequential::SequentialLr;
pub use steps::{ExponentialLr, MultiStepLr, StepLr};
pub use wsd::{Decay, Wsd};

use super::{Rates, saved};
use crate::{Error, Result, state::State};

/// A schedule whose rates follow from the number of intervals passed and from the rates before: options and one
/// formula. What it needs to be saved, resumed, rolled back and moved for every parameter group comes with it, because
/// each `Schedule` is a [`BuildScheduler`]. A schedule with other state implements [`BuildScheduler`] and [`Scheduler`].
///
/// ```
/// use amp_core::{Result, optim::{AdamW, Interval, OptimizerConfig, Rates, Schedule}};
///
/// /// The rate divided by the root of the number of intervals (Vaswani et al. 2017, equation 3).
/// #[derive(Clone)]
/// struct InverseRoot {
///     warmup_steps: i64,
/// }
///
/// impl Schedule for InverseRoot {
///     const NAME: &'static str = "InverseRoot";
///
///     fn rates(&self, passed: i64, base: Rates, _: Rates) -> Rates {
///         let (t, warmup) = ((passed + 1) as f64, self.warmup_steps as f64);
///         Rates { lr: base.lr * (t / warmup).min((warmup / t).sqrt()), ..base }
///     }
/// }
///
/// let config = OptimizerConfig::new(AdamW::default())
///     .with_scheduler(InverseRoot { warmup_steps: 4000 }, Interval::Step);
/// ```
pub trait Schedule: Clone + 'static {
    /// Under which its state is saved: torch's name where torch has it.
    const NAME: &'static str;

    /// Checks the options.
    ///
    /// # Errors
    /// When an option is out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The rates when `passed` intervals have passed, given the optimizer's own rates (`base`) and those of the interval
    /// before (`last`; with none passed, `base`). The same arguments give the same rates.
    fn rates(&self, passed: i64, base: Rates, last: Rates) -> Rates;
}

/// Options of a schedule that can be started from the optimizer's rates.
pub trait BuildScheduler {
    /// Checks the options and starts at the first step.
    ///
    /// # Errors
    /// When an option is out of range.
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>>;

    /// The logged value that the schedule follows, if it follows one.
    fn monitor(&self) -> Option<&str> {
        None
    }
}

/// A running schedule.
pub trait Scheduler {
    /// The rates of the next step.
    fn rates(&self) -> Rates;
    /// Moves on by one interval; `monitored` is the value of what
    /// [`monitor`](BuildScheduler::monitor) named.
    fn advance(&mut self, monitored: Option<f64>);
    /// What a checkpoint needs.
    ///
    /// # Errors
    /// When a rate is not finite.
    fn state(&self) -> Result<State>;
    /// Goes on from a saved state.
    ///
    /// # Errors
    /// When the state is of another schedule. Nothing is changed then.
    fn load_state(&mut self, state: &State) -> Result<()>;
    /// Another that goes on from here.
    fn fork(&self) -> Box<dyn Scheduler>;
}

/// Rule: an option is a number of its range.
fn within(name: &str, value: f64, holds: bool, range: &str) -> Result<()> {
    if holds && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(format!("scheduler: {name} is {value}, but must be {range}")))
}

fn positive(name: &str, value: i64) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::config(format!("scheduler: {name} is {value}, but must be positive")))
}

fn not_negative(name: &str, value: i64) -> Result<()> {
    if value >= 0 {
        return Ok(());
    }
    Err(Error::config(format!("scheduler: {name} is {value}, but must be at least 0")))
}
