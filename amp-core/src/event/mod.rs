//! What the training loop says. Everything that shows or stores something listens.

mod memory_plan;
mod profile;
mod recovery;

pub use memory_plan::MemoryPlan;
pub use profile::{Interval, Phase, Profile, Span};
pub use recovery::Recovery;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    Result, hardware::Fingerprint, log::Logged, precision::Precision, probe::Observed,
    provenance::Provenance,
};

/// A moment of a run, in the order they are emitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
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
    /// The modules that are checkpointed so that a step fits into the memory budget, before the first
    /// step.
    Checkpointed(MemoryPlan),
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
    Skipped(Skipped),
    /// The trainer did something so that the run could go on.
    Recovered {
        /// Optimizer steps attempted so far.
        attempt: u64,
        /// What it did.
        #[serde(flatten)]
        recovery: Recovery,
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
    /// A step was profiled. Told when the device has done it, some steps later.
    Profiled(Profile),
    /// A validation within an epoch, at the [interval](crate::trainer::ValCheckInterval) asked for.
    Validated(Validated),
    /// An epoch has ended, with its validation where one was due.
    EpochEnd(EpochEnd),
    /// A checkpoint of the run as it is now is being written, while training goes on.
    Saving {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint is on the disk.
    Saved {
        /// The file.
        path: PathBuf,
    },
    /// A signal ended the run at a step's boundary.
    Interrupted {
        /// The signal's number.
        signal: u32,
        /// Where the run was saved, to go on from.
        saved: Option<PathBuf>,
    },
    /// A callback ended the run before its last epoch.
    Stopped {
        /// Why.
        reason: String,
    },
    /// After the last epoch.
    FitEnd(FitEnd),
}

/// A step that was not applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// Optimizer steps attempted before this one.
    pub attempt: u64,
    /// The first parameter, in order of declaration, whose gradient is not finite.
    pub culprit: Option<String>,
    /// The scale it was tried with.
    pub scale: f64,
    /// Where it began, when that was looked for and found.
    pub provenance: Option<Provenance>,
}

impl Skipped {
    /// Why it was skipped, as far as is known.
    pub fn cause(&self) -> String {
        match (&self.provenance, &self.culprit) {
            (Some(found), _) => found.to_string(),
            (None, Some(culprit)) => format!("the gradient of `{culprit}` is not finite"),
            (None, None) => "a gradient is not finite".to_owned(),
        }
    }
}

/// Where training is: the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// From 0.
    pub epoch: i64,
    /// From 0, in the epoch.
    pub batch: i64,
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
    /// Where it goes on, when it was resumed from a checkpoint.
    pub resumed: Option<Position>,
}

/// The figures of a validation within an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// Where training is: the next batch.
    #[serde(flatten)]
    pub position: Position,
    /// Optimizer steps applied so far.
    pub global_step: u64,
    /// The values.
    pub val: Vec<Logged>,
    /// Wall-clock seconds of validation.
    pub val_seconds: f64,
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
    /// Validation values; none where no validation was due.
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
    /// Of those applied, the ones that ran as a CUDA graph.
    #[serde(default)]
    pub replayed: u64,
    /// The scale at the end; `None` where the precision has none.
    pub scale: Option<f64>,
    /// Wall-clock seconds of the whole run.
    pub seconds: f64,
    /// The number of the signal that ended the run, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<u32>,
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
