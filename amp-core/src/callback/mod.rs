//! Callbacks act on a run at the end of each epoch: they may save the model or end the run.
//! What only listens is a [`Subscriber`](crate::event::Subscriber).

mod early_stopping;
mod model_checkpoint;

pub use early_stopping::EarlyStopping;
pub use model_checkpoint::ModelCheckpoint;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, LightningModule, Result, event::EpochEnd, precision::Precision};

/// Acts after each epoch's validation.
pub trait Callback {
    /// Sees the model and the epoch's figures.
    ///
    /// # Errors
    /// An error ends the run as failed.
    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>>;
}

impl<C: Callback + ?Sized> Callback for &mut C {
    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>> {
        (**self).on_epoch_end(epoch)
    }
}

impl<C: Callback + ?Sized> Callback for Box<C> {
    fn on_epoch_end(&mut self, epoch: &Epoch<'_>) -> Result<Vec<Action>> {
        (**self).on_epoch_end(epoch)
    }
}

/// An epoch that has just been validated.
pub struct Epoch<'a> {
    /// The model.
    pub model: &'a dyn LightningModule,
    /// The precision it trains in.
    pub precision: Precision,
    /// The figures.
    pub end: &'a EpochEnd,
}

/// What a callback did or wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It saved the model there.
    Saved(PathBuf),
    /// The run is to end, and why.
    Stop(String),
}

/// Whether a monitored value is better when smaller or larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Smaller is better.
    Min,
    /// Larger is better.
    Max,
}

impl Mode {
    /// Whether `new` is better than `old` by more than `min_delta`.
    pub fn better(self, new: f64, old: f64, min_delta: f64) -> bool {
        match self {
            Self::Min => new < old - min_delta,
            Self::Max => new > old + min_delta,
        }
    }
}

impl Epoch<'_> {
    /// The epoch's value of this name.
    ///
    /// # Errors
    /// When nothing of this name is logged on the epoch.
    pub fn monitored(&self, monitor: &str) -> Result<f64> {
        self.end.value(monitor).ok_or_else(|| {
            let values = self.end.train.iter().chain(&self.end.val);
            let names: Vec<&str> = values.map(|logged| logged.name.as_str()).collect();
            Error::config(format!(
                "nothing to monitor under `{monitor}`: this model logs {} on the epoch",
                names.join(", ")
            ))
        })
    }
}
