use amp_core::{Hyperparameters, data::Limit};
use clap::Args;
use serde_json::Value;

use super::{assignment, positive};
use crate::{changes::Changes, length::Length};

/// Options that change a registered model: its size, its data, and how it is trained.
#[derive(Debug, Clone, Default, Args)]
pub struct ChangeArgs {
    /// Set a hyperparameter, for example --set n_layer=12; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub set: Vec<(String, Value)>,
    /// The data set; `cargo amp models` lists them [default: each model's own]
    #[arg(long)]
    pub data: Option<String>,
    /// Examples per batch [default: each model's own]
    #[arg(long)]
    pub batch_size: Option<i64>,
    /// Epochs [default: each model's own epochs or steps]
    #[arg(long)]
    pub epochs: Option<i64>,
    /// Train N optimizer steps, in as many epochs as needed [default: each model's own epochs or
    /// steps]
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "epochs")]
    pub steps: Option<u64>,
    /// End training after N optimizer steps, if this is before the end of the last epoch
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_steps: Option<u64>,
    /// Accumulate the gradients of N batches into one optimizer step [default: each model's own]
    #[arg(long, value_name = "N")]
    pub accumulate_grad_batches: Option<i64>,
    /// Clip gradients to this global norm
    #[arg(long, value_name = "NORM")]
    pub gradient_clip_val: Option<f64>,
    /// End training when this logged value, for example val_loss, no longer improves. A metric for
    /// which the model declares that higher is better improves if it rises; any other value
    /// improves if it falls [default: each model's own]
    #[arg(long, value_name = "NAME")]
    pub early_stopping: Option<String>,
    /// Number of epochs without improvement after which training ends [default: each model's own,
    /// or 3 with --early-stopping]
    #[arg(long, value_name = "EPOCHS")]
    pub patience: Option<u32>,
    /// Train on only the first batches of each epoch: a number of batches, or a fraction such as
    /// 0.1
    #[arg(long, value_name = "LIMIT")]
    pub limit_train_batches: Option<Limit>,
    /// Validate on only the first batches of each set: a number of batches, or a fraction such as
    /// 0.1; 0 switches validation off
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
            length: self.epochs.map(Length::Epochs).or(self.steps.map(Length::Steps)),
            max_steps: self.max_steps,
            accumulate_grad_batches: self.accumulate_grad_batches,
            gradient_clip_val: self.gradient_clip_val,
            early_stopping: self.early_stopping.clone(),
            patience: self.patience,
            limit_train_batches: self.limit_train_batches,
            limit_val_batches: self.limit_val_batches,
        }
    }
}
