//! Learning-rate schedules, with the formulas and the rounding of torch.optim.lr_scheduler.

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

use std::fmt;

use super::{Interval, Rates, saved};
use crate::{Error, Result, state::State};

/// A schedule whose rates (learning rate and momentum) depend only on the number of passed
/// intervals (steps or epochs) and on the previous rates. An implementation consists of options and
/// one formula. Every `Schedule` is also a [`BuildScheduler`], so it can be saved, resumed, rolled
/// back and used with parameter groups. A schedule that needs other state implements
/// [`BuildScheduler`] and [`Scheduler`] instead.
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
    /// The name of the schedule in saved states. It is torch's name if torch has the schedule.
    const NAME: &'static str;

    /// Checks the options.
    ///
    /// # Errors
    /// When an option is out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Returns a note if the options are valid but unusual, for example if the warm-up is longer
    /// than the training. `planned` is the length of the training, if it is known. The trainer
    /// prints the note when the run starts.
    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        let _ = planned;
        None
    }

    /// Returns the rates after `passed` intervals (steps or epochs). `base` are the optimizer's
    /// initial rates. `last` are the rates after `passed - 1` intervals, or `base` if `passed` is
    /// 0. The result must depend only on the arguments.
    fn rates(&self, passed: i64, base: Rates, last: Rates) -> Rates;
}

/// The options of a schedule, from which the schedule for given initial rates can be built.
pub trait BuildScheduler {
    /// Checks the options, and returns a schedule that has passed no interval yet. `base` are the
    /// optimizer's initial rates.
    ///
    /// # Errors
    /// When an option is out of range.
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>>;

    /// Returns the name of the logged value that the schedule monitors, if it monitors one.
    fn monitor(&self) -> Option<&str> {
        None
    }

    /// Returns a note if the options are valid but unusual; see [`Schedule::note`].
    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        let _ = planned;
        None
    }
}

/// A number of steps or of epochs. [`Schedule::note`] gets the length of the training in the unit in
/// which the schedule advances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// The number of steps or epochs.
    pub count: i64,
    /// Whether `count` is a number of steps or of epochs.
    pub unit: Interval,
}

impl fmt::Display for Intervals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Interval::Step => "step",
            Interval::Epoch => "epoch",
        };
        write!(f, "{} {unit}{}", self.count, if self.count == 1 { "" } else { "s" })
    }
}

/// Returns a note if the option `name`, the length of the schedule, is less than the length of the
/// training. `rate` is the learning rate after the end of the schedule.
fn ends_early(
    name: &str,
    length: i64,
    planned: Option<Intervals>,
    rate: impl fmt::Display,
) -> Option<String> {
    let planned = planned.filter(|planned| length < planned.count)?;
    let rest = Intervals { count: planned.count - length, ..planned };
    Some(format!(
        "{name} is {length}, but the training has {planned}: the learning rate of the last {rest} is {rate}"
    ))
}

/// Returns a note if the warm-up is longer than the training.
fn warms_up_longer(length: i64, planned: Option<Intervals>) -> Option<String> {
    let planned = planned.filter(|planned| length > planned.count)?;
    let warmup = Intervals { count: length, ..planned };
    Some(format!(
        "the warm-up takes {warmup}, but the training has only {planned}: the learning rate does not \
         reach its full value"
    ))
}

/// A running schedule.
pub trait Scheduler {
    /// Returns the rates of the next step.
    fn rates(&self) -> Rates;
    /// Advances the schedule by one interval (a step or an epoch). `monitored` is the latest logged
    /// value with the name that [`monitor`](BuildScheduler::monitor) returns.
    fn advance(&mut self, monitored: Option<f64>);
    /// Returns the state for a checkpoint.
    ///
    /// # Errors
    /// When a learning rate or momentum is not finite.
    fn state(&self) -> Result<State>;
    /// Restores a state that [`state`](Self::state) returned.
    ///
    /// # Errors
    /// When another schedule saved the state. After an error the schedule is unchanged.
    fn load_state(&mut self, state: &State) -> Result<()>;
    /// Returns an independent copy of the schedule in its current state.
    fn fork(&self) -> Box<dyn Scheduler>;
}

/// Checks that the option `name` is a finite number in its range. `holds` says whether `value` is
/// in the range. `range` describes the range in the error message.
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
