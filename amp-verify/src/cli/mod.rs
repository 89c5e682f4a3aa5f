//! The command line.

mod checkpoints;
mod commands;
mod evaluate;
mod exit;
mod loops;
mod monitors;
mod outcome;
mod signals;
mod summary;
mod unused;

pub use checkpoints::CheckpointArgs;
pub use commands::main;
pub use evaluate::{EvaluateArgs, PredictArgs};
pub use loops::LoopArgs;
pub use monitors::{Monitor, MonitorArgs};
pub use summary::SummaryArgs;

use std::{path::PathBuf, str::FromStr};

use amp_core::{precision::Precision, trainer::Freeze};
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

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

/// Train models in mixed precision, and compare each precision with 32-bit training.
#[derive(Debug, Parser)]
#[command(name = "cargo amp", bin_name = "cargo amp", version, disable_help_subcommand = true)]
pub struct Cli {
    /// The command that the user called.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the command line. A negative number after an option is read as the option's value. An
    /// error message then says which values the option accepts.
    ///
    /// # Errors
    /// When the command line is invalid or has an option without effect, or when the user asks for
    /// the help text.
    pub fn read() -> Result<Self, clap::Error> {
        let mut grammar = grammar();
        let matches = grammar.try_get_matches_from_mut(std::env::args_os())?;
        unused::check(&mut grammar, &matches)?;
        Self::from_arg_matches(&matches)
    }
}

fn grammar() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        unused::hide(command).mut_args(|arg| match arg.get_action() {
            ArgAction::Set | ArgAction::Append => arg.allow_negative_numbers(true),
            _ => arg,
        })
    })
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model under every precision and compare each run with the 32-true baseline
    #[command(after_help = "Example: cargo amp verify --model Net --epochs 3 --seeds 5")]
    Verify(VerifyArgs),
    /// Train a model under one precision
    #[command(
        after_help = "Example: cargo amp train --model Net --precision bf16-mixed --epochs 10 --checkpoint-dir checkpoints"
    )]
    Train(Box<TrainArgs>),
    /// Evaluate the weights of a checkpoint on the validation sets
    #[command(after_help = "Example: cargo amp validate --checkpoint checkpoints/best")]
    Validate(EvaluateArgs),
    /// Evaluate the weights of a checkpoint on the test sets
    #[command(
        name = "test-set",
        after_help = "Example: cargo amp test-set --checkpoint checkpoints/best"
    )]
    Test(EvaluateArgs),
    /// Write the predictions of a checkpoint's weights to files
    #[command(
        after_help = "Example: cargo amp predict --checkpoint checkpoints/best --output predictions"
    )]
    Predict(PredictArgs),
    /// Show the layers of a model with their shapes, parameters and operations, and the memory of a
    /// training step
    #[command(after_help = "Example: cargo amp summary --model Net --max-depth 2")]
    Summary(SummaryArgs),
    /// Show the error of each layer under a precision, measured against a 64-true step
    #[command(after_help = "Example: cargo amp layers --model Net --precision 16-mixed")]
    Layers(LayersArgs),
    /// Find why a precision loses accuracy, and which modules must stay in FP32
    #[command(
        after_help = "Example: cargo amp diagnose --model Net --precision 16-mixed --fix policy.json"
    )]
    Diagnose(DiagnoseArgs),
    /// List the models and their data
    Models,
    /// Show the devices, their capabilities and the recommended precision
    #[command(after_help = "Example: cargo amp doctor --format json")]
    Doctor(DoctorArgs),
    /// Decide for each precision, over several seeds, whether it is as good as 32-true. Exit codes:
    /// 0 pass, 1 fail, 2 usage error, 3 inconclusive, 4 not comparable with the golden (recorded
    /// values)
    #[command(after_help = "Example: cargo amp gate --model Net --tier nightly --junit gate.xml")]
    Gate(GateArgs),
    /// Measure speed and memory, and compare them with the declared targets and, with --peers, with
    /// Lightning and PyTorch
    #[command(after_help = "Example: cargo amp bench --device cuda --peers --json bench.json")]
    Bench(BenchArgs),
    /// Train models and their PyTorch versions on the same batches from the same weights, and
    /// compare them. Exit codes: 0 they agree, 1 they disagree, 2 usage error, 3 inconclusive
    #[command(after_help = "Example: cargo amp parity Net --device cuda --seeds 3")]
    Parity(ParityArgs),
    /// Record each model's margin for the gate: how much worse its metric may be than under
    /// 32-true. Also record how much the results of goldens (recorded results) differ between CPUs
    #[command(after_help = "Example: cargo amp margins --model Net")]
    Margins(MarginsArgs),
    /// Test the gate: put known faults into training and check that the gate reports each; also
    /// count false alarms in runs into which no fault was put
    #[command(after_help = "Example: cargo amp selftest --fault clipping_dropped --repetitions 0")]
    Selftest(SelftestArgs),
    /// Run the jobs of the gate that are given on standard input
    #[command(name = WORKER, hide = true)]
    GateWorker {
        /// Threads per operation
        threads: i32,
    },
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Precisions to compare with the baseline, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str,
          default_values_t = Precision::ALL, hide_default_value = true)]
    pub precision: Vec<Precision>,
    /// Run N seeds, starting with --seed, and print means over the seeds with 95 % intervals;
    /// differences from the baseline are computed for each seed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub seeds: u64,
    /// Format of the comparison
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Also write the comparison as JSON to this file; its schema is amp-verify/schema/verify.json
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write a report with charts to this file, as one self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub run: RunArgs,
}

/// Options of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The precision of the run
    #[arg(long, value_name = "NAME", value_parser = Precision::from_str, default_value_t = Precision::F32True)]
    pub precision: Precision,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub checkpoints: CheckpointArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub loops: LoopArgs,
    /// Freeze the parameters whose names match these patterns, for example encoder.*, in addition
    /// to the parameters that the model freezes. A pattern may say when freezing ends:
    /// encoder.*=epoch:3 or encoder.*=step:500. May be repeated or separated by commas
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    pub freeze: Vec<Freeze>,
    /// Average the weights exponentially with this decay, for example 0.999; validation and
    /// checkpoints use the averaged weights
    #[arg(long, value_name = "DECAY", conflicts_with = "swa_start_epoch")]
    pub ema_decay: Option<f64>,
    /// Average the weights at the ends of epochs, starting with this epoch (counted from 0);
    /// validation and checkpoints use the averaged weights
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
    /// Format of the report
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use super::grammar;

    /// Checks that every option reads `-1` as its value, so that the error message can say which
    /// values are valid. By default clap takes the `-1` in `--epochs -1` for an unknown option, and
    /// the user would read "unexpected argument '-1'".
    #[test]
    fn every_option_takes_a_negative_number_as_its_value() {
        let all = grammar();
        let mut options = 0;
        for command in all.get_subcommands().filter(|command| !command.is_hide_set()) {
            let valued = command.get_arguments().filter(|arg| arg.get_action().takes_values());
            for option in valued.filter_map(|arg| arg.get_long()) {
                let line = ["amp", command.get_name(), &format!("--{option}"), "-1"];
                if let Err(error) = grammar().try_get_matches_from(line) {
                    assert_ne!(error.kind(), clap::error::ErrorKind::UnknownArgument, "{line:?}");
                }
                options += 1;
            }
        }
        assert!(options > 100, "{options}");
    }
}
