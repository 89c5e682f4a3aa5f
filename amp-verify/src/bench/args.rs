//! The command-line options of `bench`.

use std::{path::PathBuf, str::FromStr, time::Duration};

use amp_core::{Error, Result, hardware, precision::Precision, tch, tch::Device};
use clap::{ArgGroup, Args};

use super::{
    interleaved::Engine,
    peers,
    workload::{self, Changes, Task},
};
use crate::registry::Registry;

/// The command-line options of `bench`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("compared").multiple(true))]
pub struct BenchArgs {
    /// What to train, separated by commas: workloads or models of the registry [default: the
    /// workloads that the registry declares for the device; if there are none, its first model]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub workload: Vec<String>,
    /// Change the size of the workloads: batch (examples in a batch), length (token ids in each
    /// random example) and hyperparameters, for example batch=4,length=4096,n_positions=4096;
    /// repeat the option to measure each workload at several sizes
    #[arg(long, value_name = "CHANGES", value_parser = Changes::from_str)]
    pub size: Vec<Changes>,
    /// Precisions, separated by commas [default: 32-true and bf16-mixed, and 16-mixed on CUDA]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", value_parser = Precision::from_str)]
    pub precision: Vec<Precision>,
    /// The device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Number of rounds; each round measures every engine once, in turns
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: usize,
    /// Smallest number of steps that are timed in a round
    /// [default: the number that each workload declares]
    #[arg(long, value_name = "N")]
    pub steps: Option<i64>,
    /// Size in gigabytes of a large data set; training is measured with this data set in host
    /// memory, and again with it on the device; 0 skips both measurements
    #[arg(long, value_name = "N", default_value_t = 0.25, allow_negative_numbers = true)]
    pub feed_gb: f64,
    /// Time limit in seconds: a measurement that might not end in time is skipped; a note lists the
    /// skipped ones
    #[arg(long, value_name = "SECONDS")]
    pub time_limit: Option<u64>,
    /// Also measure Lightning, PyTorch loops and torch.compile, if the interpreter of --python has
    /// PyTorch and Lightning
    #[arg(long, group = "compared")]
    pub peers: bool,
    /// As --peers, but measure only these peers, separated by commas: lightning, torch-loop,
    /// torch-fused, torch-compile, torch-compile-default, torch-compile-autotuned
    #[arg(long, value_delimiter = ',', value_name = "NAMES", group = "compared", value_parser = peer)]
    pub peer: Vec<Engine>,
    /// The Python interpreter that runs the engines of --peers
    #[arg(long, value_name = "PATH", default_value = "python3", requires = "compared")]
    pub python: PathBuf,
    /// Python script that runs the engines of --peers, in place of the registry's script
    #[arg(long, value_name = "FILE", requires = "compared")]
    pub peers_script: Option<PathBuf>,
    /// Number of threads that one CPU operation uses [default: all cores]
    #[arg(long)]
    pub threads: Option<i32>,
    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report's tables as Markdown to this file
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Do not report progress on standard error
    #[arg(long)]
    pub quiet: bool,
}

/// Parses the name of a peer (another training engine).
fn peer(name: &str) -> std::result::Result<Engine, String> {
    let all = Engine::PEERS;
    all.into_iter().find(|engine| engine.name() == name).ok_or_else(|| {
        let names: Vec<&str> = all.map(Engine::name).to_vec();
        format!("expected one of {}", names.join(", "))
    })
}

/// What to measure: the options of `bench`, after they were checked.
pub struct Plan {
    /// The device on which the models are trained.
    pub device: Device,
    /// The workloads to measure, each with its model and its data.
    pub workloads: Vec<Task>,
    /// The precisions to measure. The first is 32-true, the baseline.
    pub precisions: Vec<Precision>,
    /// The number of rounds. In each round, every engine is measured once.
    pub rounds: usize,
    /// The smallest number of steps that are timed in a round. `None` means that each workload's
    /// own number is used.
    pub steps: Option<i64>,
    /// The size in bytes of the data set with which training from host memory is compared to
    /// training from device memory. 0 skips the comparison.
    pub feed_bytes: u64,
    /// The time limit for all measurements. `None` means that there is no limit.
    pub time_limit: Option<Duration>,
}

impl BenchArgs {
    /// Checks the options and looks up the workloads.
    ///
    /// # Errors
    /// When a name is unknown or a number is out of range.
    pub fn plan(&self, registry: &Registry) -> Result<Plan> {
        let at_least_one = |name: &str, value: i64| match value {
            1.. => Ok(()),
            _ => Err(Error::config(format!("{name} {value}: it must be at least 1"))),
        };
        at_least_one("rounds", i64::try_from(self.rounds).unwrap_or(i64::MAX))?;
        at_least_one("steps", self.steps.unwrap_or(1))?;
        at_least_one("time-limit", self.time_limit.map_or(1, |seconds| seconds.min(1) as i64))?;
        if !(self.feed_gb >= 0.0 && self.feed_gb <= 1e6) {
            return Err(Error::config(format!(
                "feed-gb {}: it must be a number of gigabytes, or 0",
                self.feed_gb
            )));
        }
        if let Some(threads) = self.threads {
            at_least_one("threads", threads.into())?;
            tch::set_num_threads(threads);
        }
        let device = hardware::parse_device(&self.device)?;
        if !self.peer.is_empty() && peers::engines(device, &self.peer).is_empty() {
            let names: Vec<&str> = self.peer.iter().map(|engine| engine.name()).collect();
            let names = names.join(", ");
            return Err(Error::config(format!(
                "--peer {names}: measured only on CUDA: add --device cuda, or name other peers"
            )));
        }
        let declared = [Changes::default()];
        let sizes = if self.size.is_empty() { &declared[..] } else { &self.size };
        let mut workloads = Vec::new();
        for changes in sizes {
            match self.workload.as_slice() {
                [] => workloads.extend(workload::defaults(registry, device, changes)?),
                names => {
                    for name in names {
                        workloads.push(workload::find_changed(registry, name, changes)?);
                    }
                }
            }
        }
        let mut precisions = vec![Precision::F32True];
        let default: &[Precision] = match device.is_cuda() {
            true => &[Precision::F16Mixed, Precision::Bf16Mixed],
            false => &[Precision::Bf16Mixed],
        };
        let asked = if self.precision.is_empty() { default } else { &self.precision };
        for precision in asked {
            if !precisions.contains(precision) {
                precisions.push(*precision);
            }
        }
        let feed_bytes = (self.feed_gb * 1e9) as u64;
        let Self { rounds, steps, .. } = *self;
        let time_limit = self.time_limit.map(Duration::from_secs);
        Ok(Plan { device, workloads, precisions, rounds, steps, feed_bytes, time_limit })
    }
}
