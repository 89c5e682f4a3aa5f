//! The record of a run: the values and events that the trainer reported.

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    event::{EpochEnd, Event, FitEnd, FitStart, Profile, Recovery, Skipped, Subscriber, Validated},
    log::Logged,
    memory::Memory,
    probe::Observed,
};

/// The values and events that the trainer reported in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The model, the data and the settings of the run, and the machine on which it ran.
    #[serde(flatten)]
    pub start: FitStart,
    /// The dtypes that the first training step used.
    pub observed: Observed,
    /// The logged values and the times of each epoch.
    pub epochs: Vec<EpochEnd>,
    /// The validations that ran before the end of an epoch.
    #[serde(default)]
    pub validations: Vec<Validated>,
    /// The optimizer steps that were skipped.
    pub skips: Vec<Skipped>,
    /// For each change of the loss scale, the number of optimizer steps that had been attempted and
    /// the new scale.
    pub scales: Vec<(u64, f64)>,
    /// For each action that the trainer took to recover, the number of optimizer steps that had
    /// been attempted and the action.
    pub recoveries: Vec<(u64, Recovery)>,
    /// Notes that the trainer reported for the user.
    pub notes: Vec<String>,
    /// The measurements of the profiled steps.
    pub profile: Vec<Profile>,
    /// How the run ended.
    pub end: FitEnd,
    /// The peak memory of the run. `None` if it was not measured.
    pub memory: Option<Memory>,
    /// Whether the trained parameters are finite, and no buffer contains NaN. `None` if this was not
    /// checked, because the run's [result is finite](Self::not_finite).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_finite_weights: Option<bool>,
}

impl RunRecord {
    /// Returns the value that the last epoch logged under `name`, in training or in validation.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.epochs.last()?.value(name)
    }

    /// Returns the NaN and infinite values of the last validation. For a run without validations,
    /// returns the last epoch's training loss if it is NaN or infinite.
    pub fn not_finite(&self) -> Vec<&Logged> {
        let epoch = self.epochs.iter().rev().find(|end| !end.val.is_empty());
        let validated = match (epoch, self.validations.last()) {
            (Some(end), Some(within)) if within.position.epoch > end.epoch => Some(&within.val),
            (Some(end), _) => Some(&end.val),
            (None, within) => within.map(|within| &within.val),
        };
        let values: Vec<&Logged> = match (validated, self.epochs.last()) {
            (Some(values), _) => values.iter().collect(),
            (None, Some(end)) => end.train.iter().filter(|own| own.name == "train_loss").collect(),
            (None, None) => Vec::new(),
        };
        values.into_iter().filter(|logged| !logged.value.is_finite()).collect()
    }
}

/// A subscriber that collects the events of a run and builds the run's record.
#[derive(Debug, Default)]
pub struct Recorder {
    start: Option<FitStart>,
    observed: Observed,
    epochs: Vec<EpochEnd>,
    validations: Vec<Validated>,
    skips: Vec<Skipped>,
    scales: Vec<(u64, f64)>,
    recoveries: Vec<(u64, Recovery)>,
    notes: Vec<String>,
    profile: Vec<Profile>,
    end: Option<FitEnd>,
}

impl Subscriber for Recorder {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::FitStart(start) => self.start = Some(start.clone()),
            Event::Note { text } => self.notes.push(text.clone()),
            Event::Checkpointed(plan) => self.notes.push(plan.to_string()),
            Event::Observed(observed) => self.observed = observed.clone(),
            Event::Skipped(skipped) => self.skips.push(skipped.clone()),
            Event::Recovered { attempt, recovery } => {
                self.recoveries.push((*attempt, recovery.clone()));
            }
            Event::Scale { attempt, scale } => self.scales.push((*attempt, *scale)),
            Event::Validated(validated) => self.validations.push(validated.clone()),
            Event::EpochEnd(epoch) => self.epochs.push(epoch.clone()),
            Event::FitEnd(end) => self.end = Some(end.clone()),
            Event::Interrupted { signal, saved } => self.notes.push(match saved {
                Some(path) => format!("ended by signal {signal}, saved as {}", path.display()),
                None => format!("ended by signal {signal}, not saved"),
            }),
            Event::Stopped { reason } => self.notes.push(format!("stopped early: {reason}")),
            Event::Batch { .. }
            | Event::Logged { .. }
            | Event::Media { .. }
            | Event::Saving { .. }
            | Event::Saved { .. }
            | Event::EvaluationStart(_)
            | Event::EvaluationEnd { .. } => {}
            Event::Profiled(profile) => self.profile.push(profile.clone()),
        }
        Ok(())
    }
}

impl Recorder {
    /// Returns the record of the run. Returns `None` if the run has not ended.
    pub fn finish(self) -> Option<RunRecord> {
        Some(RunRecord {
            start: self.start?,
            observed: self.observed,
            epochs: self.epochs,
            validations: self.validations,
            skips: self.skips,
            scales: self.scales,
            recoveries: self.recoveries,
            notes: self.notes,
            profile: self.profile,
            end: self.end?,
            memory: None,
            has_finite_weights: None,
        })
    }
}
