//! Options that several commands share.

mod changes;
mod logs;
mod recovery;

pub use changes::ChangeArgs;
pub use logs::LogArgs;
pub use recovery::RecoveryArgs;

use std::{path::PathBuf, str::FromStr, time::Duration};

use amp_core::{
    Error, Result,
    data::{Loading, Placement},
    memory::parse_bytes,
    optim::{Moments, WeightUpdate},
    precision::{GradientStorage, Kernels},
    trainer::{Check, ChecksConfig, Graph, MemoryConfig, NumericsConfig, parse_time},
};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::case::Choices;

/// Checks the option `--margin`.
///
/// # Errors
/// When the margin is not a finite number above 0.
pub(crate) fn check_margin(margin: Option<f64>) -> Result<()> {
    match margin {
        Some(margin) if !(margin > 0.0 && margin.is_finite()) => {
            Err(Error::config(format!("margin {margin}: it must be above 0")))
        }
        _ => Ok(()),
    }
}

/// The options that all training commands share.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The model; `cargo amp models` lists them [default: the first one]
    #[arg(long)]
    pub model: Option<String>,
    /// The device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub changes: ChangeArgs,
    /// Seed of initial weights, order of examples and dropout
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// How optimizers write to 16-bit weights: round-to-nearest, master-weights or
    /// stochastic-rounding
    #[arg(long, value_name = "HOW", value_parser = WeightUpdate::from_str,
          default_value_t = WeightUpdate::default())]
    pub weight_update: WeightUpdate,
    /// How optimizers store their state (running averages): full, bf16 or 8-bit
    #[arg(long, value_name = "HOW", value_parser = Moments::from_str,
          default_value_t = Moments::default())]
    pub moments: Moments,
    /// Storage of gradients between the backward pass and the optimizer's step: full (f32), or
    /// 16-bit, rounded as in PyTorch under autocast (only for linear layers on CUDA)
    #[arg(long, value_name = "HOW", value_parser = GradientStorage::from_str,
          default_value_t = GradientStorage::default())]
    pub gradients: GradientStorage,
    /// Kernels of layers and losses on CUDA: own (fused layers, which round less often), or
    /// libtorch (one layer at a time, with the roundings of PyTorch)
    #[arg(long, value_name = "WHOSE", value_parser = Kernels::from_str,
          default_value_t = Kernels::default())]
    pub kernels: Kernels,
    /// The largest memory that tensors may use at once, for example 500MB or 2GiB. To stay below
    /// this limit, the trainer recomputes layers in the backward pass; the results do not change
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory_budget: Option<u64>,
    /// A policy file: the precisions of single modules, as written by `diagnose --fix`
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Allow TF32 in f32 matrix products on CUDA
    #[arg(long)]
    pub tf32: bool,
    /// Ask libtorch for deterministic algorithms
    #[arg(long)]
    pub deterministic: bool,
    /// Run whole steps as CUDA graphs: auto, on or off; the results are the same
    #[arg(long, value_name = "WHEN", value_parser = Graph::from_str,
          default_value_t = Graph::default())]
    pub graph: Graph,
    /// How often the invariants of training are checked, for example that every weight changes:
    /// off, cheap (some steps) or full (each step)
    #[arg(long, value_name = "LEVEL", value_parser = Check::from_str,
          default_value_t = Check::default())]
    pub check: Check,
    /// Threads per CPU operation [default: all cores]
    #[arg(long)]
    pub threads: Option<i32>,
    /// Where the data is stored: auto, device or host; auto uses the GPU if the data takes at most
    /// a quarter of the GPU's free memory
    #[arg(long, value_name = "WHERE", value_parser = Placement::from_str,
          default_value_t = Placement::Auto)]
    pub data_placement: Placement,
    /// Number of batches that a thread loads ahead from the host [default: 2 on CUDA, 0 on the CPU]
    #[arg(long, value_name = "N")]
    pub prefetch: Option<usize>,
    /// Number of threads that read examples, for data sets that return one example at a time
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub num_workers: usize,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub recovery: RecoveryArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub logs: LogArgs,
    /// Show no progress bar
    #[arg(long)]
    pub quiet: bool,
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for a terminal
    Table,
    /// One JSON object
    Json,
}

impl RunArgs {
    /// Converts the options into the choices from which a [`Case`](crate::case::Case) (a model with
    /// its data and options) is built.
    pub fn choices(&self) -> Choices {
        Choices {
            seed: self.seed,
            logging: self.logs.logging(),
            numerics: NumericsConfig {
                scaler: self.recovery.scaler(),
                weight_update: self.weight_update,
                moments: self.moments,
                gradients: self.gradients,
                kernels: self.kernels,
                ..NumericsConfig::default()
            },
            recovery: self.recovery.recovery(),
            memory: MemoryConfig { budget: self.memory_budget, ..MemoryConfig::default() },
            graph: self.graph,
            checks: ChecksConfig { level: self.check, ..ChecksConfig::default() },
            loading: Loading {
                placement: self.data_placement,
                prefetch: self.prefetch,
                num_workers: self.num_workers,
                ..Loading::default()
            },
            ..Choices::from(&self.changes.changes())
        }
    }
}

/// Parses `name=value`. If `value` is valid JSON, it is parsed as JSON; otherwise it is taken as a
/// string.
pub(crate) fn assignment(text: &str) -> Result<(String, Value), Error> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Error::config(format!("`{text}` does not have the form NAME=VALUE")))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

/// Parses a number of at least 1.
pub(crate) fn positive(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

/// Parses a time above 0: seconds, or a number with a unit as in 90s, 10m and 2h, or HH:MM:SS.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(['s', 'm', 'h']).len());
    let unit = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    let seconds =
        number.parse::<u64>().ok().zip(unit).map(|(count, unit)| count.saturating_mul(unit));
    let time = match seconds {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => parse_time(text).ok(),
    };
    time.filter(|time| !time.is_zero()).ok_or_else(|| {
        format!(
            "`{text}` is not a time above 0: give seconds, as in 600, or 90s, 10m, 2h, 01:30:00"
        )
    })
}
