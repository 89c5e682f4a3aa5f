//! The file `margins.json`: for each model, how much worse than 32-true the gate accepts a
//! precision to be.

use std::{collections::BTreeMap, fs, io, path::Path};

use amp_core::{Error, Hyperparameters, Result};
use serde::{Deserialize, Serialize};

use crate::{changes::Changes, length::Length};

/// The recorded margins of a project's models. A margin is how much worse than 32-true the gate
/// accepts a precision to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Margins {
    /// The command that wrote this file, for the reader of the file.
    #[serde(default)]
    pub recorded_by: String,
    /// The margin of each model, by the model's name, for the model as it is registered.
    #[serde(default)]
    pub models: BTreeMap<String, ModelMargin>,
    /// The margins of models whose settings were changed by options, for example the size, the data
    /// set or the length. A model has one entry for each combination of changes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<String, Vec<ModelMargin>>,
}

/// A model's margin (how much worse than 32-true a precision may be), and the differences from
/// which the margin was computed: for each seed, the metric under 32-true minus the metric under
/// another precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMargin {
    /// The margin: three times the largest `sigma` in `spread`, rounded up.
    pub margin: f64,
    /// The number of seeds with which the differences were measured.
    pub n: usize,
    /// The length of each training run from which the differences were measured.
    #[serde(flatten)]
    pub length: Length,
    /// The changes to the registered model in these training runs.
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub changes: Changes,
    /// The values of all hyperparameters of the model in these training runs. `None` in files that
    /// an older version wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperparameters: Option<Hyperparameters>,
    /// How much worse the metric is under each precision than under 32-true with the same seed: the
    /// mean and the standard deviation over the seeds, by the precision's name.
    pub spread: BTreeMap<String, MetricSpread>,
}

/// The mean and the standard deviation, over the seeds, of the differences of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricSpread {
    /// The mean of the differences over the seeds.
    pub mean: f64,
    /// The standard deviation of the differences over the seeds.
    pub sigma: f64,
}

impl Margins {
    /// Reads the margins from the file `path`. If there is no such file, returns an empty list of
    /// margins.
    ///
    /// # Errors
    /// When the file cannot be read or has another format.
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

    /// Returns the margin that was recorded for a model with these changes. Returns `None` if none
    /// was recorded.
    pub fn of(&self, model: &str, changes: &Changes) -> Option<&ModelMargin> {
        if changes.is_empty() {
            return self.models.get(model);
        }
        self.changed.get(model)?.iter().find(|recorded| recorded.changes == *changes)
    }

    /// Adds a model's margin to the file. If a margin for the same model and the same changes
    /// exists, replaces it.
    pub fn add(&mut self, model: &str, recorded: ModelMargin) {
        if recorded.changes.is_empty() {
            self.models.insert(model.to_owned(), recorded);
            return;
        }
        let others = self.changed.entry(model.to_owned()).or_default();
        others.retain(|other| other.changes != recorded.changes);
        others.push(recorded);
    }
}
