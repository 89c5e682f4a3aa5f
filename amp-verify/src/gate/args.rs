//! Options of `gate`.

use std::{path::PathBuf, str::FromStr, time::Duration};

use amp_core::{
    precision::{Kernels, Precision},
    trainer::Check,
};
use clap::{Args, ValueEnum};

use crate::options::{ChangeArgs, duration, positive};

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Few epochs or steps, few seeds, the mixed precisions: for every change
    Quick,
    /// Each model's own epochs or steps, more seeds, every precision
    Nightly,
}

impl Tier {
    /// The number of seeds in the first look, and at most.
    pub fn seeds(self) -> (usize, usize) {
        match self {
            Self::Quick => (4, 10),
            Self::Nightly => (8, 24),
        }
    }

    /// The precisions that are judged.
    pub fn precisions(self) -> &'static [Precision] {
        match self {
            Self::Quick => &[Precision::F16Mixed, Precision::Bf16Mixed],
            Self::Nightly => {
                let [_, others @ ..] = &Precision::ALL;
                others
            }
        }
    }
}

/// Options of `gate`.
#[derive(Debug, Args)]
pub struct GateArgs {
    /// Models, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", conflicts_with = "all")]
    pub model: Vec<String>,
    /// Every model
    #[arg(long)]
    pub all: bool,
    /// Which tier to run
    #[arg(long, value_enum, default_value_t = Tier::Quick)]
    pub tier: Tier,
    /// Precisions to judge, separated by commas [default: the tier's]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str)]
    pub precision: Vec<Precision>,
    /// Seeds in the first look [default: the tier's]
    #[arg(long, value_name = "N")]
    pub seeds: Option<usize>,
    /// The most seeds, used if the first look is inconclusive [default: the tier's]
    #[arg(long, value_name = "M")]
    pub max_seeds: Option<usize>,
    /// The first seed; the others are the following numbers
    #[arg(long, value_name = "SEED", default_value_t = 42)]
    pub first_seed: u64,
    /// The probability with which a regression as large as the margin may pass
    #[arg(long, default_value_t = 0.05)]
    pub alpha: f64,
    /// Also fail a precision that is better than the baseline by the margin
    #[arg(long)]
    pub equivalence: bool,
    /// δ of the one model that --model names: the loss of its metric that is not accepted [default: its
    /// declared or recorded one; models that are changed by an option below have none of their own]
    #[arg(long, value_name = "DELTA")]
    pub margin: Option<f64>,
    /// Run the seeds one after the other and begin none that would not end within this time: seconds, 10m,
    /// 2h or HH:MM:SS
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub changes: ChangeArgs,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Let f32 matrix products run in TF32 on CUDA, in the baseline as well
    #[arg(long)]
    pub tf32: bool,
    /// Ask libtorch for deterministic algorithms
    #[arg(long)]
    pub deterministic: bool,
    /// Kernels of layers and losses on CUDA, in the baseline as well: own (fused layers that round less often), or
    /// libtorch (each layer by itself, with the roundings of PyTorch)
    #[arg(long, value_name = "WHOSE", value_parser = Kernels::from_str,
          default_value_t = Kernels::default())]
    pub kernels: Kernels,
    /// How often the invariants of training are checked in each run: off, cheap (some steps) or full
    /// (each step)
    #[arg(long, value_name = "LEVEL", value_parser = Check::from_str,
          default_value_t = Check::default())]
    pub check: Check,
    /// Processes that share the work on a CPU [default: one per core]
    #[arg(long, value_name = "N")]
    pub processes: Option<usize>,
    /// Threads of one operation on a CPU, in each process; figures depend on it in their last digits
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 1)]
    pub threads: u64,
    /// Ignore cached results and run everything again
    #[arg(long)]
    pub no_cache: bool,
    /// Compare the first seed's figures with the goldens in this folder
    #[arg(long, value_name = "FOLDER")]
    pub goldens: Option<PathBuf>,
    /// Precision regions by module path, as --fix writes them; needs a single --model
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Write the modules of a failing model that must stay in FP32 to this policy file; needs a single
    /// --model
    #[arg(long, value_name = "FILE", conflicts_with = "no_diagnose")]
    pub fix: Option<PathBuf>,
    /// Do not search for the cause of failures; by default the first few failing cells are diagnosed
    #[arg(long)]
    pub no_diagnose: bool,
    /// Write JUnit XML to this file
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the report as JSON to this file; its schema is amp-verify/schema/gate.json
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write an HTML page to this file with each verdict, what was checked and what was not
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write a summary in Markdown to this file, in addition to GITHUB_STEP_SUMMARY if that is set
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}
