//! The events that training and evaluation emit. Tables, progress bars, logs and run records are
//! built from these events.

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

/// An event of a training or evaluation run. The variants are in about the order in which a run
/// emits them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Training begins; no step has run yet.
    FitStart(FitStart),
    /// A note for the user, for example a warning.
    Note {
        /// The text of the note, one line.
        text: String,
    },
    /// The dtypes in which the first step ran its operations.
    Observed(Observed),
    /// The trainer has chosen the modules whose activations are recomputed in the backward pass to
    /// stay within the memory budget. Emitted before the first step.
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
        /// The loss scale; `None` if the precision does not scale the loss.
        scale: Option<f64>,
        /// The completed fraction of the run, from 0 to 1. If the run is limited to a number of
        /// epochs and to a number of steps, this is the larger of the two fractions. If a callback,
        /// for example, ends the run earlier, the last fraction is below 1.
        done: f64,
    },
    /// A step was skipped, because a gradient or the loss was not finite.
    Skipped(Skipped),
    /// A problem occurred, and the trainer took an action so that the run could continue.
    Recovered {
        /// Optimizer steps attempted so far, including skipped ones.
        attempt: u64,
        /// The action.
        #[serde(flatten)]
        recovery: Recovery,
    },
    /// The loss scale has changed.
    Scale {
        /// Optimizer steps attempted so far, including skipped ones.
        attempt: u64,
        /// The new scale.
        scale: f64,
    },
    /// The values that one step logged. Emitted at the logging interval.
    Logged {
        /// Optimizer steps applied so far.
        global_step: u64,
        /// The logged values, with their names.
        values: Vec<Logged>,
    },
    /// A step, a hook or a validation logged an image, a text or a histogram.
    Media {
        /// Optimizer steps applied so far.
        global_step: u64,
        /// The name under which the model or callback logged the media.
        name: String,
        /// The image, text or histogram.
        media: Media,
    },
    /// A step was profiled. The event is emitted at the end of the epoch, when the times are read
    /// from the device.
    Profiled(Profile),
    /// A validation within an epoch has ended (see
    /// [`ValCheckInterval`](crate::trainer::ValCheckInterval)), or an evaluation without training
    /// has ended.
    Validated(Validated),
    /// An epoch has ended. If a validation was due at its end, the validation has ended too.
    EpochEnd(EpochEnd),
    /// A checkpoint of the current state is being written to disk. Training continues meanwhile.
    Saving {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint has been written to disk.
    Saved {
        /// The file.
        path: PathBuf,
    },
    /// A signal ended the run between two steps.
    Interrupted {
        /// The signal's number.
        signal: u32,
        /// The checkpoint file in which the run was saved; `None` if the run was not saved.
        saved: Option<PathBuf>,
    },
    /// A callback or [`max_time`](crate::trainer::Loops::max_time) ended the run before its last
    /// epoch.
    Stopped {
        /// The reason.
        reason: String,
    },
    /// Training has ended without an error. This is the last event of the run.
    FitEnd(FitEnd),
    /// An evaluation without training begins: [`Trainer::validate`](crate::Trainer::validate),
    /// [`test`](crate::Trainer::test) or [`predict`](crate::Trainer::predict). The values
    /// that the model logs follow in the events [`Media`](Self::Media) and
    /// [`Validated`](Self::Validated), at step 0.
    EvaluationStart(EvaluationStart),
    /// An evaluation without training has ended.
    EvaluationEnd {
        /// Wall-clock seconds of the evaluation.
        seconds: f64,
    },
}

impl Event {
    /// Returns the properties of the run that starts with this event. The run is a training run or
    /// an evaluation without training. Returns `None` for any other event.
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

/// An optimizer step that was skipped because a gradient or the loss was not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// Optimizer steps attempted before this one, including skipped ones.
    pub attempt: u64,
    /// The name of the first parameter, in order of declaration, whose gradient is not finite.
    /// `None` if no gradient was found to be the cause.
    pub culprit: Option<String>,
    /// The loss scale with which the step was attempted.
    pub scale: f64,
    /// The first value that was not finite. `None` if the trainer did not search for it or did not
    /// find it.
    pub provenance: Option<Provenance>,
}

impl Skipped {
    /// Returns one line that says why the step was skipped, as precisely as is known.
    pub fn cause(&self) -> String {
        match (&self.provenance, &self.culprit) {
            (Some(found), _) => found.to_string(),
            (None, Some(culprit)) => format!("the gradient of `{culprit}` is not finite"),
            (None, None) => "a gradient is not finite".to_owned(),
        }
    }
}

/// A position in a training run: the next batch to train on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// The epoch, counted from 0.
    pub epoch: i64,
    /// The batch, counted from 0 in the epoch.
    pub batch: i64,
}

/// The properties that every run has, with or without training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStart {
    /// The model's name.
    pub model: String,
    /// The data's name.
    pub data: String,
    /// The precision.
    pub precision: Precision,
    /// The seed from which the trainer computes the order of examples. If the caller seeded
    /// libtorch with the same number, this is also the seed of the weights and of dropout.
    pub seed: u64,
    /// The machine, and the settings of the process that affect results.
    pub fingerprint: Fingerprint,
    /// Hyperparameters by name.
    pub hyperparameters: crate::Hyperparameters,
    /// The number of elements of all parameters that are trained from the start of the run on.
    pub parameters: i64,
}

/// The properties of a training run, known before its first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitStart {
    /// The properties that every run has, with or without training.
    #[serde(flatten)]
    pub run: RunStart,
    /// The number of elements of the parameters that are frozen at the start, and trained later in
    /// the run.
    #[serde(default)]
    pub trained_later: i64,
    /// The number of epochs after which the run ends at the latest.
    pub max_epochs: i64,
    /// Batches per epoch.
    pub batches_per_epoch: i64,
    /// The position at which a resumed run continues; `None` for a new run.
    pub resumed: Option<Position>,
}

/// The properties of an evaluation without training, known before its first batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationStart {
    /// The kind of evaluation: validation, test or prediction.
    pub stage: Stage,
    /// The properties that every run has, with or without training.
    #[serde(flatten)]
    pub run: RunStart,
}

/// The kinds of evaluation without training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Evaluates the model on the validation sets.
    Validate,
    /// Evaluates the model on the test sets.
    Test,
    /// Computes predictions for the prediction sets.
    Predict,
}

/// The values that a validation within an epoch, or an evaluation without training, has logged. For
/// an evaluation without training, the position and the step are 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// The epoch of the validation, and the next batch to train on.
    #[serde(flatten)]
    pub position: Position,
    /// Optimizer steps applied so far.
    pub global_step: u64,
    /// The values that the validation or evaluation has logged.
    pub val: Vec<Logged>,
    /// The wall-clock time of this validation or evaluation, in seconds.
    pub val_seconds: f64,
}

/// The logged values, the learning rate and the times of an epoch that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochEnd {
    /// The epoch, counted from 0.
    pub epoch: i64,
    /// Optimizer steps applied so far.
    pub global_step: u64,
    /// The learning rate of the last step of the epoch.
    pub lr: f64,
    /// The values logged in training.
    pub train: Vec<Logged>,
    /// The values logged in validation; empty if no validation was due in this epoch.
    pub val: Vec<Logged>,
    /// The wall-clock time of the epoch's training, in seconds.
    pub train_seconds: f64,
    /// The wall-clock time of the epoch's validation, in seconds.
    pub val_seconds: f64,
}

impl EpochEnd {
    /// Returns the value that was logged under this name, in training or in validation.
    pub fn value(&self, name: &str) -> Option<f64> {
        let mut values = self.train.iter().chain(&self.val);
        values.find(|logged| logged.name == name).map(|logged| logged.value)
    }
}

/// The counts, the loss scale and the time at the end of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitEnd {
    /// Optimizer steps applied.
    pub global_step: u64,
    /// Optimizer steps skipped.
    pub skipped: u64,
    /// The number of applied steps that ran by replaying a CUDA graph.
    #[serde(default)]
    pub replayed: u64,
    /// The loss scale at the end of the run; `None` if the precision does not scale the loss.
    pub scale: Option<f64>,
    /// The wall-clock time of the whole run, in seconds.
    pub seconds: f64,
    /// The number of the signal that ended the run; `None` if no signal did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<u32>,
}

/// Receives the events of a run, for example to write a log.
pub trait Subscriber {
    /// Receives an event.
    ///
    /// # Errors
    /// An error of a subscriber ends the run.
    fn on_event(&mut self, event: &Event) -> Result<()>;
}

impl<F: FnMut(&Event) -> Result<()>> Subscriber for F {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        self(event)
    }
}
