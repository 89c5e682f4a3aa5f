//! The file `margins.json`.

use std::{collections::BTreeMap, fs, io, path::Path};

use amp_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// The recorded figures of a project's models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Margins {
    /// The command that wrote the file.
    #[serde(default)]
    pub recorded_by: String,
    /// For each model the differences of its metric between precisions, over seeds.
    #[serde(default)]
    pub models: BTreeMap<String, ModelMargin>,
}

/// A model's metric over seeds, and the margin that follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMargin {
    /// δ: three times the widest σ, rounded up.
    pub margin: f64,
    /// Seeds.
    pub n: usize,
    /// Epochs of each run.
    pub epochs: i64,
    /// By precision: by how much the metric is worse than the 32-true one's of the same seed.
    pub spread: BTreeMap<String, MetricSpread>,
}

/// Mean and standard deviation of a difference of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricSpread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub sigma: f64,
}

impl Margins {
    /// Reads the file; nothing was recorded where it is missing.
    ///
    /// # Errors
    /// When it cannot be read or is of another form.
    pub fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                Error::config(format!(
                    "{}: {error}; record it anew with `cargo amp margins`",
                    path.display()
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::io(path, error)),
        }
    }

    /// The recorded δ of a model.
    pub fn margin(&self, model: &str) -> Option<f64> {
        self.models.get(model).map(|recorded| recorded.margin)
    }
}
