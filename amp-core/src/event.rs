//! What the training loop says. Everything that shows or stores something listens.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Result, hardware::Fingerprint, log::Logged, precision::Precision, probe::Observed};

/// A moment of a run, in the order they are emitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Before the first step.
    FitStart(FitStart),
    /// Something the user should know once.
    Note {
        /// The text, one line.
        text: String,
    },
    /// The dtypes of the first step.
    Observed(Observed),
    /// A batch was trained on.
    Batch {
        /// From 0.
        epoch: i64,
        /// From 0, in the epoch.
        batch: i64,
        /// Optimizer steps applied so far.
        global_step: u64,
    },
    /// A step was not applied because a gradient was not finite.
    Skipped {
        /// Optimizer steps attempted before this one.
        attempt: u64,
        /// The first parameter whose gradient is not finite.
        culprit: Option<String>,
        /// The scale it was tried with.
        scale: f64,
    },
    /// The scale moved.
    Scale {
        /// Optimizer steps attempted so far.
        attempt: u64,
        /// The new scale.
        scale: f64,
    },
    /// Values of one step, at the logging interval.
    Logged {
        /// Optimizer steps applied so far.
        global_step: u64,
        /// The values.
        values: Vec<Logged>,
    },
    /// A step was profiled.
    Profiled {
        /// From 0.
        epoch: i64,
        /// From 0, in the epoch.
        batch: i64,
        /// What was measured.
        phases: Phases,
    },
    /// An epoch with its validation has ended.
    EpochEnd(EpochEnd),
    /// A callback saved the model.
    Saved {
        /// The file.
        path: PathBuf,
    },
    /// A callback ended the run before its last epoch.
    Stopped {
        /// Why.
        reason: String,
    },
    /// After the last epoch.
    FitEnd(FitEnd),
}

/// Wall-clock seconds of a step's phases, over all batches it accumulates, and the memory held.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Phases {
    /// Forward pass and loss.
    pub forward: f64,
    /// Backward pass.
    pub backward: f64,
    /// Unscaling, hooks, clipping, optimizer step and scaler update.
    pub optimizer: f64,
    /// The most tensor bytes held at the end of a phase; CUDA only.
    pub memory: Option<u64>,
}

/// What a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitStart {
    /// The model's name.
    pub model: String,
    /// The data's name.
    pub data: String,
    /// The precision.
    pub precision: Precision,
    /// The trainer's seed: of the order of examples, and of weights and dropout where the caller
    /// has seeded libtorch alike.
    pub seed: u64,
    /// The machine.
    pub fingerprint: Fingerprint,
    /// Hyperparameters by name.
    pub hyperparameters: crate::Hyperparameters,
    /// Trained numbers.
    pub parameters: i64,
    /// Epochs at most.
    pub max_epochs: i64,
    /// Batches in an epoch.
    pub batches_per_epoch: i64,
}

/// The figures of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// From 0.
    pub epoch: i64,
    /// Optimizer steps applied so far.
    pub global_step: u64,
    /// The learning rate of the epoch's last step.
    pub lr: f64,
    /// Training values.
    pub train: Vec<Logged>,
    /// Validation values.
    pub val: Vec<Logged>,
    /// Wall-clock seconds of training.
    pub train_seconds: f64,
    /// Wall-clock seconds of validation.
    pub val_seconds: f64,
}

impl EpochEnd {
    /// The value of this name, training or validation.
    pub fn value(&self, name: &str) -> Option<f64> {
        let mut values = self.train.iter().chain(&self.val);
        values.find(|logged| logged.name == name).map(|logged| logged.value)
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitEnd {
    /// Optimizer steps applied.
    pub global_step: u64,
    /// Optimizer steps skipped.
    pub skipped: u64,
    /// The scale at the end; `None` where the precision has none.
    pub scale: Option<f64>,
    /// Wall-clock seconds of the whole run.
    pub seconds: f64,
}

/// Listens to a run.
pub trait Subscriber {
    /// Sees an event.
    ///
    /// # Errors
    /// An error ends the run.
    fn on_event(&mut self, event: &Event) -> Result<()>;
}

impl<F: FnMut(&Event) -> Result<()>> Subscriber for F {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        self(event)
    }
}
