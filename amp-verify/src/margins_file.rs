//! The file `margins.json`: for each model, how much worse than 32-true the gate accepts a
//! precision to be.

use std::{collections::BTreeMap, fs, io, path::Path};

use amp_core::{Error, Hyperparameters, Result};
use serde::{Deserialize, Serialize};

use crate::{changes::Changes, length::Length};

/// The recorded margins of a project's models. A margin is how much worse than 32-true the gate
/// accepts a precision to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "File")]
pub struct Margins {
    /// The command that wrote this file. For information only.
    pub recorded_by: String,
    /// The margins of each model, by the model's name. A model has one margin for each length of
    /// training and for each combination of changes, for example of its size or its data set.
    pub models: BTreeMap<String, Vec<ModelMargin>>,
}

/// The content of `margins.json`, in the format of this version or of an older version.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    recorded_by: String,
    #[serde(default)]
    models: BTreeMap<String, Entries>,
    /// The margins of models trained with changes, for example of their size. Only in files of an
    /// older version.
    #[serde(default)]
    changed: BTreeMap<String, Vec<ModelMargin>>,
}

/// A model's margins. Files of an older version have a single margin here, for the model without
/// changes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entries {
    One(Box<ModelMargin>),
    All(Vec<ModelMargin>),
}

impl From<File> for Margins {
    fn from(file: File) -> Self {
        let mut margins = Self { recorded_by: file.recorded_by, models: BTreeMap::new() };
        let own = file.models.into_iter().map(|(name, entries)| match entries {
            Entries::One(entry) => (name, vec![*entry]),
            Entries::All(entries) => (name, entries),
        });
        for (name, entries) in own.chain(file.changed) {
            for entry in entries {
                margins.add(&name, entry);
            }
        }
        margins
    }
}

/// A model's margin: how much worse than 32-true the gate accepts a precision to be. Also has the
/// measurements from which the margin was computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMargin {
    /// The margin: three times the largest `sigma` in `spread`, rounded up.
    pub margin: f64,
    /// The number of seeds with which the differences from 32-true were measured.
    pub n: usize,
    /// The length of each training run in this measurement.
    #[serde(flatten)]
    pub length: Length,
    /// The changes to the registered model in these training runs, except a changed length of
    /// training.
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub changes: Changes,
    /// The values of all hyperparameters of the model in these training runs. `None` in files that
    /// an older version wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperparameters: Option<Hyperparameters>,
    /// For each precision, by name: how much worse the metric was than under 32-true with the same
    /// seed, as mean and standard deviation over the seeds.
    pub spread: BTreeMap<String, MetricSpread>,
}

/// How much worse a metric was under a precision than under 32-true: the mean and the standard
/// deviation over the seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricSpread {
    /// The mean over the seeds. It is positive if the precision is worse than 32-true.
    pub mean: f64,
    /// The standard deviation over the seeds.
    pub sigma: f64,
}

impl Margins {
    /// Reads the margins from the file `path`. If there is no such file, returns an empty list of
    /// margins.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a file of margins.
    pub fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                Error::config(format!(
                    "{}: {error}; record it again with `cargo amp margins`",
                    path.display()
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::io(path, error)),
        }
    }

    /// Returns the margin that was recorded for a model with these changes, trained for `length`.
    /// The length in `changes` is ignored. Returns `None` if no such margin was recorded.
    pub fn of(&self, model: &str, changes: &Changes, length: Length) -> Option<&ModelMargin> {
        let changes = changes.without_length();
        let is_it = |entry: &&ModelMargin| entry.length == length && entry.changes == changes;
        self.models.get(model)?.iter().find(is_it)
    }

    /// Adds a model's margin, or replaces the margin that was recorded for the same length of
    /// training and the same changes. The length is `recorded.length`. A length in
    /// `recorded.changes` is removed.
    pub fn add(&mut self, model: &str, mut recorded: ModelMargin) {
        recorded.changes = recorded.changes.without_length();
        let entries = self.models.entry(model.to_owned()).or_default();
        let same = entries
            .iter_mut()
            .find(|entry| entry.length == recorded.length && entry.changes == recorded.changes);
        match same {
            Some(entry) => *entry = recorded,
            None => entries.push(recorded),
        }
    }
}
