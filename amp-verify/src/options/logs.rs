use std::path::PathBuf;

use amp_core::trainer::LoggingConfig;
use clap::Args;

use super::positive;

/// The logs to write.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Write every event as a line of JSON to this file
    #[arg(long, value_name = "FILE")]
    pub log_jsonl: Option<PathBuf>,
    /// Write every logged value as a row of CSV to this file
    #[arg(long, value_name = "FILE")]
    pub log_csv: Option<PathBuf>,
    /// Write TensorBoard's event files under this folder
    #[arg(long, value_name = "FOLDER")]
    pub log_tensorboard: Option<PathBuf>,
    /// Optimizer steps between two whose values are logged
    #[arg(long, value_name = "N", value_parser = positive, 
          default_value_t = LoggingConfig::default().log_every_n_steps.cast_unsigned())]
    pub log_every_n_steps: u64,
    /// Measure the phases of every N-th step and print their times [default: the model's own]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub profile: Option<u64>,
    /// Write the measured steps as a trace for chrome://tracing or Perfetto to this file; without
    /// --profile every step is measured
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

impl LogArgs {
    /// Which steps are logged and profiled.
    pub fn logging(&self) -> LoggingConfig {
        let steps = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        LoggingConfig {
            log_every_n_steps: steps(self.log_every_n_steps),
            profile_every_n_steps: self.profile.or(self.trace.is_some().then_some(1)).map(steps),
        }
    }
}
