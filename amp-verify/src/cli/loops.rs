use std::time::Duration;

use amp_core::{
    Error,
    data::Limit,
    trainer::{Loops, ValCheckInterval, parse_time},
};
use clap::Args;

/// How long a run trains at least, how much of each set it uses and when it validates.
#[derive(Debug, Args)]
pub struct LoopArgs {
    /// Train at least so many epochs, whatever early stopping says
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_epochs: i64,
    /// Train at least so many optimizer steps, whatever early stopping says
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_steps: u64,
    /// End training after this time, as in 01:30:00; what resumed runs have trained counts
    #[arg(long, value_name = "HH:MM:SS", value_parser = time)]
    pub max_time: Option<Duration>,
    /// Train on the first batches of each epoch alone: a number, or a fraction as in 0.1
    #[arg(long, value_name = "LIMIT")]
    pub limit_train_batches: Option<Limit>,
    /// Validate on the first batches of each set alone: a number, or a fraction; 0 validates nothing
    #[arg(long, value_name = "LIMIT")]
    pub limit_val_batches: Option<Limit>,
    /// Train and validate on these first training batches in their order: a model that can learn
    /// learns them by heart
    #[arg(long, value_name = "LIMIT")]
    pub overfit_batches: Option<Limit>,
    /// Run N batches of training and validation and save nothing: a look whether all code runs
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1")]
    pub fast_dev_run: Option<i64>,
    /// Validate N batches before training, so that a mistake there shows at once
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_sanity_val_steps: i64,
    /// Validate after this part of an epoch (0.25), so many optimizer steps (500), this time
    /// (00:15:00), or never [default: the end of each epoch]
    #[arg(long, value_name = "WHEN")]
    pub val_check_interval: Option<ValCheckInterval>,
    /// Epochs from one that is validated to the next
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub check_val_every_n_epoch: i64,
}

impl LoopArgs {
    /// As the trainer takes them.
    pub fn loops(&self) -> Loops {
        Loops {
            min_epochs: self.min_epochs,
            min_steps: self.min_steps,
            max_time: self.max_time,
            limit_train_batches: self.limit_train_batches.unwrap_or_default(),
            limit_val_batches: self.limit_val_batches.unwrap_or_default(),
            overfit_batches: self.overfit_batches,
            fast_dev_run: self.fast_dev_run,
            num_sanity_val_steps: self.num_sanity_val_steps,
            val_check_interval: self.val_check_interval.unwrap_or_default(),
            check_val_every_n_epoch: self.check_val_every_n_epoch,
            ..Loops::default()
        }
    }
}

fn time(text: &str) -> Result<Duration, Error> {
    parse_time(text)
}
