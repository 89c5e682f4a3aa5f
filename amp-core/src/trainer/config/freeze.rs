//! Which parameters are frozen, and until when.

use std::{fmt, str::FromStr};

use crate::{Error, Result};

/// Parameters that are frozen (not trained), for the whole run or until an epoch or step. The text
/// form is a pattern for parameter names, such as `encoder.*`. To train the parameters from an
/// epoch or step on, append `=epoch:3` or `=step:500`. A parameter is frozen while at least one
/// entry of [`freeze`](super::OptimizationConfig::freeze) freezes it.
///
/// ```
/// use amp_core::trainer::Freeze;
///
/// # fn main() -> amp_core::Result<()> {
/// assert_eq!("encoder.*".parse::<Freeze>()?, Freeze::new("encoder.*"));
/// assert_eq!("stem.*=epoch:3".parse::<Freeze>()?, Freeze::new("stem.*").until_epoch(3));
/// assert_eq!("stem.*=step:500".parse::<Freeze>()?, Freeze::new("stem.*").until_step(500));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    pattern: String,
    until: Until,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    End,
    Epoch(i64),
    Step(u64),
}

impl Freeze {
    /// Freezes the parameters for the whole run. `*` in the pattern matches any text, including
    /// dots.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self { pattern: pattern.into(), until: Until::End }
    }

    /// Ends the freeze at the start of this epoch, counted from 0.
    #[must_use]
    pub fn until_epoch(self, epoch: i64) -> Self {
        Self { until: Until::Epoch(epoch), ..self }
    }

    /// Ends the freeze after this number of optimizer steps.
    #[must_use]
    pub fn until_step(self, step: u64) -> Self {
        Self { until: Until::Step(step), ..self }
    }

    pub(in crate::trainer) fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Returns whether this entry's parameters are frozen in the given epoch when the given number
    /// of optimizer steps have run.
    pub(in crate::trainer) fn holds(&self, epoch: i64, global_step: u64) -> bool {
        match self.until {
            Until::End => true,
            Until::Epoch(until) => epoch < until,
            Until::Step(until) => global_step < until,
        }
    }

    /// Returns whether the freeze has an end and lasts for at least the first `steps` optimizer
    /// steps. Assumes that every freeze that ends at an epoch lasts for these steps, because the
    /// number of steps per epoch is not known here.
    pub fn ends_after(&self, steps: u64) -> bool {
        match self.until {
            Until::End => false,
            Until::Epoch(_) => true,
            Until::Step(until) => until >= steps,
        }
    }

    /// Returns whether this entry freezes its parameters for the whole run.
    pub(in crate::trainer) fn is_endless(&self) -> bool {
        matches!(self.until, Until::End)
    }

    /// Returns the number of optimizer steps after which this entry's parameters are trained.
    /// Returns `None` if the freeze does not end at a step.
    pub(in crate::trainer) fn step(&self) -> Option<u64> {
        match self.until {
            Until::Step(step) => Some(step),
            Until::End | Until::Epoch(_) => None,
        }
    }
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pattern)?;
        match self.until {
            Until::End => Ok(()),
            Until::Epoch(epoch) => write!(f, "=epoch:{epoch}"),
            Until::Step(step) => write!(f, "=step:{step}"),
        }
    }
}

impl FromStr for Freeze {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((pattern, until)) = text.split_once('=') else {
            return Ok(Self::new(text));
        };
        let number = |digits: &str| digits.parse::<u32>().ok().filter(|number| *number > 0);
        let (unit, digits) = until.split_once(':').unwrap_or_default();
        match (unit, number(digits)) {
            ("epoch", Some(epoch)) => Ok(Self::new(pattern).until_epoch(epoch.into())),
            ("step", Some(step)) => Ok(Self::new(pattern).until_step(step.into())),
            _ => Err(Error::config(format!(
                "freeze: `{until}` is not a time for unfreezing: write {pattern}=epoch:3 or \
                 {pattern}=step:500, with a number of at least 1"
            ))),
        }
    }
}
