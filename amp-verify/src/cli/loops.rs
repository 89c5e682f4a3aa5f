use std::time::Duration;

use amp_core::{
    Error,
    data::Limit,
    trainer::{Loops, ValCheckInterval, parse_time},
};
use clap::Args;

/// Options that limit the length of a run, shorten it for a test, and choose when it validates.
#[derive(Debug, Args)]
pub struct LoopArgs {
    /// Train at least N epochs, even if early stopping would end the run
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_epochs: i64,
    /// Train at least N optimizer steps, even if early stopping would end the run
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_steps: u64,
    /// End training after this time, for example 01:30:00; if the run is resumed, the time before
    /// counts too
    #[arg(long, value_name = "HH:MM:SS", value_parser = time)]
    pub max_time: Option<Duration>,
    /// Train and validate on only the first training batches (a number or a fraction), without
    /// shuffling, to test whether the model can memorize them
    #[arg(long, value_name = "LIMIT")]
    pub overfit_batches: Option<Limit>,
    /// Run N batches of training and validation and save nothing, to test that all code runs
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1")]
    pub fast_dev_run: Option<i64>,
    /// Validate N batches before training, to find mistakes in validation early
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_sanity_val_steps: i64,
    /// Validate after this fraction of an epoch (0.25), this number of optimizer steps (500), this
    /// time (00:15:00), or never [default: at the end of each epoch]
    #[arg(long, value_name = "WHEN")]
    pub val_check_interval: Option<ValCheckInterval>,
    /// Validate every N-th epoch
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub check_val_every_n_epoch: i64,
}

impl LoopArgs {
    /// Converts these options into the trainer's options. Copies the limits of training and
    /// validation batches per epoch from `own`, because they are not among these options.
    pub fn loops(&self, own: &Loops) -> Loops {
        Loops {
            min_epochs: self.min_epochs,
            min_steps: self.min_steps,
            max_time: self.max_time,
            limit_train_batches: own.limit_train_batches,
            limit_val_batches: own.limit_val_batches,
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
