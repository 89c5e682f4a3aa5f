//! The file `margins.json`.

use std::{collections::BTreeMap, fs, io, path::Path};

use amp_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// What was recorded of a project's models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Margins {
    /// The command that wrote the file.
    #[serde(default)]
    pub recorded_by: String,
    /// By model: how its metric differs between precisions over seeds.
    #[serde(default)]
    pub models: BTreeMap<String, ModelMargin>,
    /// By kind of device, `cpu` or `cuda`: how far the first steps are from 32-true ones.
    #[serde(default)]
    pub first_steps: BTreeMap<String, FirstSteps>,
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

/// The first steps of unchanged runs on one kind of device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstSteps {
    /// The machine, and the kernels that ran on it.
    pub device: String,
    /// Seeds.
    pub n: usize,
    /// By model and precision.
    pub models: BTreeMap<String, BTreeMap<String, StepSpreads>>,
}

/// How far the first steps of one model under one precision are from 32-true ones; the figures are
/// those of [`Figures`](crate::gate::Figures).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is documented where it is computed")]
pub struct StepSpreads {
    pub gradient_error: Population,
    pub update_error: Population,
    pub loss_error: Population,
    pub update_bias: Population,
    pub norm_bias: Population,
}

/// A figure over unchanged runs. Of errors, which cannot be negative, mean and deviation are those of
/// the power 2/3, which is close to normal (Wilson and Hilferty 1931).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Population {
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub sigma: f64,
    /// The largest size of the figure itself.
    pub most: f64,
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
