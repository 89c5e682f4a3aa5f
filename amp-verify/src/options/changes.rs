use amp_core::{Hyperparameters, data::Limit};
use clap::Args;
use serde_json::Value;

use super::{assignment, positive};
use crate::{changes::Changes, length::Length};

/// Options that change the size, the data and the length of training of a registered model.
#[derive(Debug, Clone, Default, Args)]
pub struct ChangeArgs {
    /// Set a hyperparameter of each model, for example --set n_layer=12; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, Value)>,
    /// The data set [default: each model's own]
    #[arg(long)]
    pub data: Option<String>,
    /// Examples per batch [default: each model's own]
    #[arg(long)]
    pub batch_size: Option<i64>,
    /// Train N optimizer steps [default: each model's own epochs or steps]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub steps: Option<u64>,
    /// Train on only the first batches of each epoch: a number of batches, or a fraction such as
    /// 0.1
    #[arg(long, value_name = "LIMIT")]
    pub limit_train_batches: Option<Limit>,
    /// Validate on only the first batches of each set: a number of batches or a fraction
    #[arg(long, value_name = "LIMIT")]
    pub limit_val_batches: Option<Limit>,
}

impl ChangeArgs {
    /// Returns the changes to a registered model that these options ask for.
    pub fn changes(&self) -> Changes {
        Changes {
            hyperparameters: self.set.iter().cloned().collect::<Hyperparameters>(),
            data: self.data.clone(),
            batch_size: self.batch_size,
            length: self.steps.map(Length::Steps),
            limit_train_batches: self.limit_train_batches,
            limit_val_batches: self.limit_val_batches,
        }
    }
}
