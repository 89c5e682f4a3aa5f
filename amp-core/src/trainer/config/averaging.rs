//! How a run averages the weights of its model.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a run averages its weights and buffers, as torch.optim.swa_utils.AveragedModel does.
/// Training itself uses the unaveraged weights. Validation uses the averaged weights, and so does
/// the model after the run. Checkpoints contain both. The averages of 16-bit weights are f32,
/// because most changes of an average are smaller than the spacing of 16-bit numbers and would be
/// rounded away.
///
/// ```
/// use amp_core::{prelude::*, trainer::Averaging};
///
/// let config = TrainerConfig::new(Precision::F32True, Device::Cpu).with(|config| {
///     config.optimization.averaging = Some(Averaging::Ema { decay: 0.999 });
/// });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Averaging {
    /// Exponential moving average: after each applied step, average ← decay · average + (1 − decay)
    /// · weight. The first average is equal to the weights after the first step.
    Ema {
        /// The decay rate, at least 0 and below 1, for example 0.999.
        decay: f64,
    },
    /// Stochastic weight averaging: the mean of the weights at the ends of epochs.
    Swa {
        /// The first epoch, counted from 0, at whose end the weights enter the mean.
        start_epoch: i64,
    },
}

impl Averaging {
    pub(super) fn check(self) -> Result<()> {
        match self {
            Self::Ema { decay } if !(0.0..1.0).contains(&decay) => Err(Error::config(format!(
                "the decay of the average is {decay}, but must be at least 0 and below 1"
            ))),
            Self::Swa { start_epoch } if start_epoch < 0 => Err(Error::config(format!(
                "the average's start_epoch is {start_epoch}, but must be at least 0"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns a note if no epoch of the run enters the average. `last` is the run's last epoch.
    pub(in crate::trainer) fn note(self, last: i64) -> Option<String> {
        match self {
            Self::Swa { start_epoch } if start_epoch > last => Some(format!(
                "the weights are not averaged: the average's start_epoch is {start_epoch}, but the \
                 last epoch of this run is {last} (counted from 0)"
            )),
            _ => None,
        }
    }
}
