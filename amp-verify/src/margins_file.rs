//! The file `margins.json`.

use std::{collections::BTreeMap, fs, io, path::Path};

use amp_core::{Error, Hyperparameters, Result};
use serde::{Deserialize, Serialize};

use crate::{changes::Changes, length::Length};

/// The recorded margins of a project's models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Margins {
    /// The command that wrote the file.
    #[serde(default)]
    pub recorded_by: String,
    /// For each model, by name: its margin, and the differences over seeds from which it follows.
    #[serde(default)]
    pub models: BTreeMap<String, ModelMargin>,
    /// The same for models with changed settings, for example another size, data set or length. A
    /// model may have several entries, with different changes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<String, Vec<ModelMargin>>,
}

/// A model's margin, and the differences from which it follows: those between its metric under
/// 32-true and under another precision, over several seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMargin {
    /// δ: three times the largest σ in `spread`, rounded up.
    pub margin: f64,
    /// The number of seeds.
    pub n: usize,
    /// The length of each run.
    #[serde(flatten)]
    pub length: Length,
    /// The changes to the registered model with which the runs were made.
    #[serde(default, skip_serializing_if = "Changes::is_empty")]
    pub changes: Changes,
    /// All hyperparameters of the model; null in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hyperparameters: Option<Hyperparameters>,
    /// For each precision: how much worse the metric is than the metric of 32-true with the same
    /// seed.
    pub spread: BTreeMap<String, MetricSpread>,
}

/// The mean and the standard deviation, over the seeds, of the differences of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricSpread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub sigma: f64,
}

impl Margins {
    /// Reads the file. A missing file means that nothing was recorded.
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

    /// Returns the recorded margin of a model with these changes.
    pub fn of(&self, model: &str, changes: &Changes) -> Option<&ModelMargin> {
        if changes.is_empty() {
            return self.models.get(model);
        }
        self.changed.get(model)?.iter().find(|recorded| recorded.changes == *changes)
    }

    /// Adds a model's margin, and removes the margin that was recorded earlier for this model with
    /// the same changes.
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
