use std::str::FromStr;

use amp_core::precision::Precision;
use clap::Args;

use crate::options::ChangeArgs;

/// The default of `--first-seed`: the first seed of the unchanged runs (runs into which no fault is
/// put). All other runs use smaller seeds by default.
const FRESH: u64 = 10_000;

/// Options of `selftest`.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Print the names of all faults with their descriptions, and run nothing
    #[arg(long)]
    pub list: bool,
    /// Number of unchanged runs (into which no fault is put), each with new seeds; each failure of
    /// such a run counts as a false alarm
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub repetitions: u64,
    /// Put no fault into training: only make the unchanged runs, and count their false alarms
    #[arg(long, conflicts_with_all = ["fault", "diagnose"])]
    pub unchanged: bool,
    /// Check only the rules and the first steps, without full training runs; required if the
    /// options change the model and no margin was recorded for the changed model
    #[arg(long)]
    pub rules: bool,
    /// Precisions of the unchanged runs, separated by commas [default: the quick tier's]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str)]
    pub precision: Vec<Precision>,
    /// The first seed of the first unchanged run; each further unchanged run begins with a seed
    /// that is larger by 100
    #[arg(long, value_name = "SEED", default_value_t = FRESH)]
    pub first_seed: u64,
    /// Test only these faults, separated by commas; --list prints their names [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub fault: Vec<String>,
    /// The model to train, with and without faults [default: for each fault, a model that declares
    /// it with `reveals`; for the unchanged runs, one model of the registry after another]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Search for the cause of a fault, as `gate` does, if the check of the rules or of the first
    /// steps reported the fault
    #[arg(long)]
    pub diagnose: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub changes: ChangeArgs,
    /// The device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Processes that share the work on a CPU [default: one per core]
    #[arg(long, value_name = "N")]
    pub processes: Option<usize>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}
