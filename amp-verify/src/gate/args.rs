//! The command-line options of `gate`.

use std::{path::PathBuf, str::FromStr, time::Duration};

use amp_core::{
    precision::{Kernels, Precision},
    trainer::Check,
};
use clap::{Args, ValueEnum};

use crate::options::{ChangeArgs, duration, positive};

/// How many seeds, precisions and training steps the gate runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Few epochs or steps, few seeds and the mixed precisions; meant for every commit
    Quick,
    /// Each model's full epochs or steps, more seeds and every precision; meant for every night
    Nightly,
}

impl Tier {
    /// Returns two numbers of seeds: how many the statistical test gets in its first evaluation,
    /// and how many at most in the later ones. See [`evaluations`](crate::verdict::evaluations).
    pub fn seeds(self) -> (usize, usize) {
        match self {
            Self::Quick => (3, 10),
            Self::Nightly => (8, 24),
        }
    }

    /// Returns the precisions that the gate judges in this tier.
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

/// The command-line options of `gate`.
#[derive(Debug, Args)]
pub struct GateArgs {
    /// Models, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", conflicts_with = "all")]
    pub model: Vec<String>,
    /// Judge every model
    #[arg(long)]
    pub all: bool,
    /// How many seeds, precisions and training steps the gate runs
    #[arg(long, value_enum, default_value_t = Tier::Quick)]
    pub tier: Tier,
    /// Precisions to judge, separated by commas [default: the tier's]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str)]
    pub precision: Vec<Precision>,
    /// Number of seeds in the first evaluation [default: the tier's]
    #[arg(long, value_name = "N")]
    pub seeds: Option<usize>,
    /// Largest number of seeds; the gate adds seeds while the verdict is inconclusive [default: the
    /// tier's]
    #[arg(long, value_name = "M")]
    pub max_seeds: Option<usize>,
    /// The first seed; the further seeds are the numbers that follow it
    #[arg(long, value_name = "SEED", default_value_t = 42)]
    pub first_seed: u64,
    /// The largest accepted probability that a regression as large as the margin passes the gate
    #[arg(long, default_value_t = 0.05)]
    pub alpha: f64,
    /// Also fail a precision that is better than the baseline by more than the margin
    #[arg(long)]
    pub equivalence: bool,
    /// How much worse than the baseline the metric of the model in --model may be (the margin)
    /// [default: the model's margin; if an option below changes the model, the margin recorded with
    /// the same change]
    #[arg(long, value_name = "DELTA")]
    pub margin: Option<f64>,
    /// Time limit, in seconds or as 10m, 2h or HH:MM:SS; the gate then trains one seed after
    /// another, starts no seed that might exceed the limit, and checks no further rules after the
    /// limit
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_limit: Option<Duration>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub changes: ChangeArgs,
    /// The device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Allow TF32 in f32 matrix products on CUDA, in the baseline as well
    #[arg(long)]
    pub tf32: bool,
    /// Ask libtorch for deterministic algorithms
    #[arg(long)]
    pub deterministic: bool,
    /// Kernels of layers and losses on CUDA, in the baseline as well: own (fused layers, which
    /// round less often), or libtorch (one layer at a time, which rounds as PyTorch does)
    #[arg(long, value_name = "WHOSE", value_parser = Kernels::from_str,
          default_value_t = Kernels::default())]
    pub kernels: Kernels,
    /// How often the invariants of training are checked in each run: off, cheap (some steps) or full
    /// (each step)
    #[arg(long, value_name = "LEVEL", value_parser = Check::from_str,
          default_value_t = Check::default())]
    pub check: Check,
    /// Number of processes that share the work on a CPU [default: one per core]
    #[arg(long, value_name = "N")]
    pub processes: Option<usize>,
    /// Number of threads that each process uses for one operation on a CPU; the last digits of
    /// results depend on this number
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 1)]
    pub threads: u64,
    /// Ignore cached results and run everything again
    #[arg(long)]
    pub no_cache: bool,
    /// Compare the results of the first seed with the goldens (recorded results) in this folder
    #[arg(long, value_name = "FOLDER")]
    pub goldens: Option<PathBuf>,
    /// A policy file as written by --fix, with the precisions of single modules; needs --model with
    /// one name
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// If a model fails, write the modules that must stay in FP32 to this policy file; needs
    /// --model with one name
    #[arg(long, value_name = "FILE", conflicts_with = "no_diagnose")]
    pub fix: Option<PathBuf>,
    /// Do not search for the causes of failures; by default the first few failures are diagnosed
    #[arg(long)]
    pub no_diagnose: bool,
    /// Write JUnit XML to this file
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the report as JSON to this file; its schema is amp-verify/schema/gate.json
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write an HTML page to this file with each verdict, the checks that ran and those that did
    /// not
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write a summary in Markdown to this file, in addition to the file in GITHUB_STEP_SUMMARY
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}
