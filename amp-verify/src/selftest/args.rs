use std::str::FromStr;

use amp_core::precision::Precision;
use clap::Args;

use crate::options::ChangeArgs;

/// The default first seed of the runs without a fault. All other runs use smaller seeds by default.
const FRESH: u64 = 10_000;

/// Options of `selftest`.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Print the names of all faults with their descriptions, and run nothing
    #[arg(long)]
    pub list: bool,
    /// Number of runs without a fault, each with new seeds; each failure counts as a false alarm
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub repetitions: u64,
    /// Put no fault into training: only count the false alarms of the runs without a fault
    #[arg(long, conflicts_with_all = ["fault", "diagnose"])]
    pub unchanged: bool,
    /// Check only the rules and the first steps, without full training runs; needed for a changed
    /// model that has no margin
    #[arg(long)]
    pub rules: bool,
    /// Precisions of the runs without a fault, separated by commas [default: the quick tier's]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str)]
    pub precision: Vec<Precision>,
    /// The first seed of the runs without a fault; the seeds of each further run begin 100 later
    #[arg(long, value_name = "SEED", default_value_t = FRESH)]
    pub first_seed: u64,
    /// Test only these faults, separated by commas; --list prints their names [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub fault: Vec<String>,
    /// The model into which the faults are put [default: for each fault, a model that declares the
    /// fault with `reveals`] and which the runs without a fault train [default: all models in turn]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Search for the cause of each fault that a rule or the first steps reveal, as `gate` does
    #[arg(long)]
    pub diagnose: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub changes: ChangeArgs,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Processes that share the work on a CPU [default: one per core]
    #[arg(long, value_name = "N")]
    pub processes: Option<usize>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}
