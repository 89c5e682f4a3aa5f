//! The command line.

mod checkpoints;
mod commands;
mod evaluate;
mod loops;
mod monitors;
mod signals;

pub use checkpoints::CheckpointArgs;
pub use commands::main;
pub use evaluate::{EvaluateArgs, PredictArgs};
pub use loops::LoopArgs;
pub use monitors::{Monitor, MonitorArgs};

use std::{path::PathBuf, str::FromStr};

use amp_core::{precision::Precision, trainer::Freeze};
use clap::{Args, Parser, Subcommand};

pub use crate::options::{Format, LogArgs, RecoveryArgs, RunArgs};
use crate::{
    bench::BenchArgs,
    diagnose::DiagnoseArgs,
    gate::{GateArgs, WORKER},
    layers::LayersArgs,
    margins::MarginsArgs,
    options::positive,
    parity::ParityArgs,
    selftest::SelftestArgs,
};

/// Mixed-precision training, held against 32-bit training.
#[derive(Debug, Parser)]
#[command(name = "cargo amp", bin_name = "cargo amp", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model under every precision and print each run beside the 32-true baseline
    Verify(VerifyArgs),
    /// Train a model under one precision
    Train(Box<TrainArgs>),
    /// Validate the weights of a checkpoint on the validation sets
    Validate(EvaluateArgs),
    /// Test the weights of a checkpoint on the test sets
    #[command(name = "test-set")]
    Test(EvaluateArgs),
    /// Write what the weights of a checkpoint predict
    Predict(PredictArgs),
    /// Show what each layer of a model loses under a precision, against a 64-true step
    Layers(LayersArgs),
    /// Tell what a loss of precision is due to and which modules must stay FP32
    Diagnose(DiagnoseArgs),
    /// List the models and their data
    Models,
    /// Show the devices, what they can do and which precision to start with
    Doctor(DoctorArgs),
    /// Judge every precision against 32-true over several seeds: exits with 0 pass, 1 regression,
    /// 2 usage, 3 inconclusive, 4 not comparable
    Gate(GateArgs),
    /// Measure speed and memory, next to PyTorch programs with --peers, and hold them against the
    /// targets
    Bench(BenchArgs),
    /// Train models beside their PyTorch twins, on the same batches from the same weights: exits with 0 where
    /// they agree, 1 where they do not, 2 usage, 3 inconclusive
    Parity(ParityArgs),
    /// Record margins, which the gate judges by, and how far the figures of goldens move between CPUs
    Margins(MarginsArgs),
    /// Inject faults, each of which must turn the gate red, and repeat unchanged runs
    Selftest(SelftestArgs),
    /// Do the gate's jobs from standard input
    #[command(name = WORKER, hide = true)]
    GateWorker {
        /// Threads of one operation
        threads: i32,
    },
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Precisions besides the baseline, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str,
          default_values_t = Precision::ALL, hide_default_value = true)]
    pub precision: Vec<Precision>,
    /// Run so many seeds, from --seed on: figures are then means with their 95 % intervals, and
    /// differences from the baseline are taken seed by seed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub seeds: u64,
    /// How to print the comparison
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Write the comparison as JSON to this file too; its schema is amp-verify/schema/verify.json
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write a report with charts to this file: one page that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub run: RunArgs,
}

/// Options of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The precision
    #[arg(long, value_name = "NAME", value_parser = Precision::from_str, default_value_t = Precision::F32True)]
    pub precision: Precision,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub checkpoints: CheckpointArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub loops: LoopArgs,
    /// Leave the parameters whose names match these patterns as they are, besides those that the model
    /// freezes, as in encoder.*, for the whole run or until encoder.*=epoch:3 or encoder.*=step:500; may be
    /// repeated, or separated by commas
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    pub freeze: Vec<Freeze>,
    /// Validate and save the exponential moving average of the weights with this decay, as in 0.999
    #[arg(long, value_name = "DECAY", conflicts_with = "swa_start_epoch")]
    pub ema_decay: Option<f64>,
    /// Validate and save the mean of the weights at the ends of the epochs from this one on, from 0
    #[arg(long, value_name = "EPOCH")]
    pub swa_start_epoch: Option<i64>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub monitors: MonitorArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub run: RunArgs,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How to print the report
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}
