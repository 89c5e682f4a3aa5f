use std::path::PathBuf;

use amp_core::trainer::LoggingConfig;
use clap::Args;

use super::positive;

/// Options for log files.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Write every event to this file, one JSON object per line
    #[arg(long, value_name = "FILE")]
    pub log_jsonl: Option<PathBuf>,
    /// Write every logged value to this file, one CSV row per value
    #[arg(long, value_name = "FILE")]
    pub log_csv: Option<PathBuf>,
    /// Write TensorBoard event files below this folder
    #[arg(long, value_name = "FOLDER")]
    pub log_tensorboard: Option<PathBuf>,
    /// Write runs into this folder of MLflow's file store
    #[arg(long, value_name = "FOLDER")]
    pub log_mlflow: Option<PathBuf>,
    /// Write offline runs of W&B below this folder, for upload with `wandb sync`
    #[arg(long, value_name = "FOLDER")]
    pub log_wandb: Option<PathBuf>,
    /// Log values every N optimizer steps
    #[arg(long, value_name = "N", value_parser = positive, 
          default_value_t = LoggingConfig::default().log_every_n_steps.cast_unsigned())]
    pub log_every_n_steps: u64,
    /// Measure how long the phases of every N-th step (such as the forward pass) take, and print
    /// the times [default: set by the model]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub profile: Option<u64>,
    /// Write the times of the measured steps to this file as a trace for chrome://tracing or
    /// Perfetto; without --profile every step is measured
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

impl LogArgs {
    /// Returns the trainer's options for logging: how often it logs values, and how often it
    /// measures the times of the phases of a step.
    pub fn logging(&self) -> LoggingConfig {
        let steps = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        LoggingConfig {
            log_every_n_steps: steps(self.log_every_n_steps),
            profile_every_n_steps: self.profile.or(self.trace.is_some().then_some(1)).map(steps),
        }
    }
}
