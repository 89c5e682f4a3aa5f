//! The changes that a command's options make to a registered model. The precision is not one of
//! these changes, because a command may run a model under several precisions.

use std::fmt;

use amp_core::{Hyperparameters, data::Limit};
use serde::{Deserialize, Serialize};

use crate::length::Length;

/// Changes to a registered model: to its hyperparameters, its data set, its batch size, the length
/// of training, the clipping of gradients, and the number of batches to use in each epoch. A field
/// that is `None` changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// The values of hyperparameters, by name.
    #[serde(default, skip_serializing_if = "Hyperparameters::is_empty")]
    pub hyperparameters: Hyperparameters,
    /// The name of the data set to train on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The number of examples per batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<i64>,
    /// How long to train: a number of epochs or of optimizer steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<Length>,
    /// The largest number of optimizer steps. Training ends after this number of steps even if
    /// `length` is longer. It also takes the place of the model's own length, if `length` is `None`
    /// and the model's length is a number of steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// The number of batches whose gradients are accumulated into one optimizer step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulate_grad_batches: Option<i64>,
    /// The global norm to which gradients are clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_clip_val: Option<f64>,
    /// The name of the logged value that early stopping monitors, which may end in `:min` or `:max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<String>,
    /// The number of epochs without improvement of the monitored value after which early stopping
    /// ends training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// How many training batches to use in each epoch: a number of batches, or a fraction of all
    /// batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_train_batches: Option<Limit>,
    /// How many batches of each validation set to use: a number of batches, or a fraction of all
    /// batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_val_batches: Option<Limit>,
}

impl Changes {
    /// Returns whether these changes leave the model as it is registered.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns these changes without the change of the length of training.
    pub fn without_length(&self) -> Self {
        Self { length: None, ..self.clone() }
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<String> =
            self.hyperparameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.extend(self.data.as_ref().map(|data| format!("data {data}")));
        all.extend(self.batch_size.map(|size| format!("batches of {size}")));
        all.extend(self.length.map(|length| length.to_string()));
        all.extend(self.max_steps.map(|steps| format!("at most {}", Length::Steps(steps))));
        all.extend(
            self.accumulate_grad_batches.map(|count| format!("{count} batches per optimizer step")),
        );
        all.extend(self.gradient_clip_val.map(|norm| format!("gradients clipped to {norm}")));
        all.extend(self.early_stopping.as_ref().map(|name| format!("early stopping by {name}")));
        all.extend(self.patience.map(|epochs| format!("patience {epochs}")));
        all.extend(
            self.limit_train_batches.map(|limit| format!("{limit} of the training batches")),
        );
        all.extend(
            self.limit_val_batches.map(|limit| format!("{limit} of the validation batches")),
        );
        match all.as_slice() {
            [] => f.write_str("nothing"),
            all => f.write_str(&all.join(", ")),
        }
    }
}
