//! The changes that the options of a command make to a registered model. The precision does not
//! belong to them.

use std::fmt;

use amp_core::{Hyperparameters, data::Limit};
use serde::{Deserialize, Serialize};

use crate::length::Length;

/// Changes to a registered model: to its hyperparameters, its data, its batch size, the length of
/// training and the share of the data to use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// Hyperparameters by name.
    #[serde(default, skip_serializing_if = "Hyperparameters::is_empty")]
    pub hyperparameters: Hyperparameters,
    /// The data set's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Examples per batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<i64>,
    /// The length of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<Length>,
    /// The number or share of training batches to use in each epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_train_batches: Option<Limit>,
    /// The number or share of batches to use of each validation set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_val_batches: Option<Limit>,
}

impl Changes {
    /// Returns whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all: Vec<String> =
            self.hyperparameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.extend(self.data.as_ref().map(|data| format!("data {data}")));
        all.extend(self.batch_size.map(|size| format!("batches of {size}")));
        all.extend(self.length.map(|length| length.to_string()));
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
