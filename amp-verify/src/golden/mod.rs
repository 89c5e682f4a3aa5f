//! Goldens of a comparison: what of it is kept, and when a new one still agrees.

mod rules;
mod spread;

pub use rules::{Agreement, Moved, refuses_not_a_number};
pub use spread::{Samples, Spread};

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::comparison::{Comparison, Run};

/// The figures of a comparison that other machines must reproduce.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// The model's name.
    pub model: String,
    /// The data's name.
    pub data: String,
    /// The seed.
    pub seed: u64,
    /// Epochs.
    pub epochs: i64,
    /// Examples in a batch.
    pub batch_size: i64,
    /// Hyperparameters by name.
    pub hyperparameters: amp_core::Hyperparameters,
    /// Figures by precision.
    pub runs: BTreeMap<String, Figures>,
}

/// One precision's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Validation metric; null when it was not a number.
    pub accuracy: Option<f64>,
    /// Accuracy less the baseline's.
    pub accuracy_delta: Option<f64>,
    /// Validation loss; null when it was not finite.
    pub loss: Option<f64>,
    /// Optimizer steps skipped.
    pub skipped_steps: u64,
    /// Loss scale at the end.
    pub final_scale: Option<f64>,
    /// The most tensor bytes at once.
    pub peak_memory_bytes: u64,
    /// Dtypes of matrix products.
    pub matmul: BTreeSet<String>,
    /// Dtype of the loss.
    pub loss_dtype: String,
    /// Dtypes of weights.
    pub weights: BTreeSet<String>,
}

impl From<&Comparison> for Golden {
    fn from(comparison: &Comparison) -> Self {
        let subject = &comparison.subject;
        Self {
            model: subject.model.clone(),
            data: subject.data.clone(),
            seed: subject.seed,
            epochs: subject.max_epochs,
            batch_size: comparison.batch_size,
            hyperparameters: subject.hyperparameters.clone(),
            runs: comparison
                .runs
                .iter()
                .map(|run| (run.precision.name().to_owned(), Figures::from(run)))
                .collect(),
        }
    }
}

impl From<&Run> for Figures {
    fn from(run: &Run) -> Self {
        Self {
            accuracy: run.accuracy,
            accuracy_delta: run.delta.as_ref().and_then(|delta| delta.accuracy),
            loss: run.loss,
            skipped_steps: run.skipped_steps,
            final_scale: run.final_scale,
            peak_memory_bytes: run.peak_memory_bytes,
            matmul: run.observed.matmul.clone(),
            loss_dtype: run.observed.loss.clone(),
            weights: run.observed.parameters.clone(),
        }
    }
}
