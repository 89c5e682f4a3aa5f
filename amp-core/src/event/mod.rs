//! Events of training and evaluation. Tables, progress bars, logs and records are built from them.

mod memory_plan;
mod profile;
mod recovery;

pub use memory_plan::MemoryPlan;
pub use profile::{Interval, Phase, Profile, Span};
pub use recovery::Recovery;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    hardware::Fingerprint,
    log::{Logged, Media},
    precision::Precision,
    probe::Observed,
    provenance::Provenance,
};

/// An event of a run. The variants are in the order in which a run emits them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run begins; no step has run yet.
    FitStart(FitStart),
    /// A note for the user, written once.
    Note {
        /// The text, one line.
        text: String,
    },
    /// The dtypes that the first step used.
    Observed(Observed),
    /// The plan of the modules that are recomputed to stay within the memory budget. It is emitted
    /// before the first step.
    Checkpointed(MemoryPlan),
    /// A batch was trained on.
    Batch {
        /// The epoch, counted from 0.
        epoch: i64,
        /// The batch, counted from 0 in the epoch.
        batch: i64,
        /// Optimizer steps applied so far.
        global_step: u64,
        /// The number of examples in the batch.
        examples: i64,
        /// The loss scale; `None` if the precision has none.
        scale: Option<f64>,
        /// The completed fraction of the run, from 0 to 1, measured by its epochs or its largest
        /// number of steps. If a run ends earlier, for example because of a callback, its last
        /// fraction is below one.
        done: f64,
    },
    /// A step was skipped, because a gradient or the loss was not finite.
    Skipped(Skipped),
    /// The trainer took an action so that the run could continue.
    Recovered {
        /// Optimizer steps attempted so far.
        attempt: u64,
        /// The action.
        #[serde(flatten)]
        recovery: Recovery,
    },
    /// The loss scale changed.
    Scale {
        /// Optimizer steps attempted so far.
        attempt: u64,
        /// The new scale.
        scale: f64,
    },
    /// The values of one step, emitted at the logging interval.
    Logged {
        /// Optimizer steps applied so far.
        global_step: u64,
        /// The values that were logged.
        values: Vec<Logged>,
    },
    /// A step, a hook or a validation logged an image, a text or a histogram.
    Media {
        /// Optimizer steps applied so far.
        global_step: u64,
        /// The name under which it was logged.
        name: String,
        /// The image, text or histogram.
        media: Media,
    },
    /// A step was profiled. Emitted when the device has finished it, some steps later.
    Profiled(Profile),
    /// A validation within an epoch has ended (see
    /// [`ValCheckInterval`](crate::trainer::ValCheckInterval)), or an evaluation without training
    /// has ended.
    Validated(Validated),
    /// An epoch has ended, and its validation if one was due.
    EpochEnd(EpochEnd),
    /// A checkpoint of the current state is being written, while training continues.
    Saving {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint is on the disk.
    Saved {
        /// The file.
        path: PathBuf,
    },
    /// A signal ended the run between two steps.
    Interrupted {
        /// The signal's number.
        signal: u32,
        /// The file in which the run was saved, if it was saved.
        saved: Option<PathBuf>,
    },
    /// A callback ended the run before its last epoch.
    Stopped {
        /// The reason.
        reason: String,
    },
    /// The run has ended after its last epoch.
    FitEnd(FitEnd),
    /// An evaluation without training begins: [`Trainer::validate`](crate::Trainer::validate),
    /// [`test`](crate::Trainer::test) or [`predict`](crate::Trainer::predict). What the model logs
    /// follows as [`Media`](Self::Media) and [`Validated`](Self::Validated) at step 0.
    EvaluationStart(EvaluationStart),
    /// An evaluation without training has ended.
    EvaluationEnd {
        /// Wall-clock seconds of the evaluation.
        seconds: f64,
    },
}

impl Event {
    /// Returns the run that starts with this event: training, or an evaluation without training.
    pub fn started(&self) -> Option<&RunStart> {
        match self {
            Self::FitStart(start) => Some(&start.run),
            Self::EvaluationStart(start) => Some(&start.run),
            _ => None,
        }
    }

    /// Returns whether this is the last event of a run.
    pub fn ends_run(&self) -> bool {
        matches!(self, Self::FitEnd(_) | Self::EvaluationEnd { .. })
    }
}

/// A step that was skipped because a gradient or the loss was not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// Optimizer steps attempted before this one.
    pub attempt: u64,
    /// The first parameter, in order of declaration, whose gradient is not finite.
    pub culprit: Option<String>,
    /// The loss scale of the attempt.
    pub scale: f64,
    /// The first value that was not finite, if the trainer searched for it and found it.
    pub provenance: Option<Provenance>,
}

impl Skipped {
    /// Returns the cause of the skip, as far as it is known.
    pub fn cause(&self) -> String {
        match (&self.provenance, &self.culprit) {
            (Some(found), _) => found.to_string(),
            (None, Some(culprit)) => format!("the gradient of `{culprit}` is not finite"),
            (None, None) => "a gradient is not finite".to_owned(),
        }
    }
}

/// The position of a run: the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// The epoch, counted from 0.
    pub epoch: i64,
    /// The batch, counted from 0 in the epoch.
    pub batch: i64,
}

/// The properties of a run, with or without training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStart {
    /// The model's name.
    pub model: String,
    /// The data's name.
    pub data: String,
    /// The precision.
    pub precision: Precision,
    /// The trainer's seed of the order of examples. If the caller seeded libtorch with the same
    /// number, it is also the seed of the weights and of dropout.
    pub seed: u64,
    /// The description of the machine.
    pub fingerprint: Fingerprint,
    /// Hyperparameters by name.
    pub hyperparameters: crate::Hyperparameters,
    /// The number of trained parameter elements.
    pub parameters: i64,
}

/// The properties of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitStart {
    /// The properties of every run.
    #[serde(flatten)]
    pub run: RunStart,
    /// The largest number of epochs.
    pub max_epochs: i64,
    /// Batches per epoch.
    pub batches_per_epoch: i64,
    /// The position at which the run continues, if it was resumed from a checkpoint.
    pub resumed: Option<Position>,
}

/// The properties of an evaluation without training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationStart {
    /// Which evaluation it is.
    pub stage: Stage,
    /// The properties of every run.
    #[serde(flatten)]
    pub run: RunStart,
}

/// The evaluations without training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// On the validation sets.
    Validate,
    /// On the test sets.
    Test,
    /// On the sets to predict.
    Predict,
}

/// The values of a validation within an epoch, or of an evaluation without training. The position
/// and step of an evaluation without training are 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// The position: the next batch.
    #[serde(flatten)]
    pub position: Position,
    /// Optimizer steps applied so far.
    pub global_step: u64,
    /// The values that the validation or evaluation has logged.
    pub val: Vec<Logged>,
    /// Wall-clock seconds of validation.
    pub val_seconds: f64,
}

/// The values of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// The epoch, counted from 0.
    pub epoch: i64,
    /// Optimizer steps applied so far.
    pub global_step: u64,
    /// The learning rate of the epoch's last step.
    pub lr: f64,
    /// The training values.
    pub train: Vec<Logged>,
    /// The validation values; empty if no validation was due.
    pub val: Vec<Logged>,
    /// Wall-clock seconds of training.
    pub train_seconds: f64,
    /// Wall-clock seconds of validation.
    pub val_seconds: f64,
}

impl EpochEnd {
    /// Returns the value of this name, training or validation.
    pub fn value(&self, name: &str) -> Option<f64> {
        let mut values = self.train.iter().chain(&self.val);
        values.find(|logged| logged.name == name).map(|logged| logged.value)
    }
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitEnd {
    /// Optimizer steps applied.
    pub global_step: u64,
    /// Optimizer steps skipped.
    pub skipped: u64,
    /// Applied steps that ran as a CUDA graph.
    #[serde(default)]
    pub replayed: u64,
    /// The loss scale at the end; `None` if the precision has none.
    pub scale: Option<f64>,
    /// Wall-clock seconds of the whole run.
    pub seconds: f64,
    /// The number of the signal that ended the run, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<u32>,
}

/// Receives the events of a run.
pub trait Subscriber {
    /// Receives an event.
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
