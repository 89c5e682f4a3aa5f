//! Which training steps are reported to the subscribers.

use crate::{Error, Result};

/// Which training steps are reported to the subscribers, and which are profiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggingConfig {
    /// How often a step is reported: once in this number of optimizer steps, counted across epochs.
    pub log_every_n_steps: i64,
    /// How often a step is profiled: once in this number of optimizer steps, counted across epochs.
    /// `None` profiles no step.
    pub profile_every_n_steps: Option<i64>,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { log_every_n_steps: 50, profile_every_n_steps: None }
    }
}

impl LoggingConfig {
    pub(super) fn check(&self) -> Result<()> {
        let intervals = [
            ("log_every_n_steps", self.log_every_n_steps),
            ("profile_every_n_steps", self.profile_every_n_steps.unwrap_or(1)),
        ];
        match intervals.into_iter().find(|(_, steps)| *steps < 1) {
            Some((name, steps)) => {
                Err(Error::config(format!("{name} is {steps}, but must be at least 1")))
            }
            None => Ok(()),
        }
    }
}
