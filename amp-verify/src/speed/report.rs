//! The report of a benchmark.

use std::collections::BTreeMap;

use amp_core::{hardware::Fingerprint, precision::Precision};
use serde::{Deserialize, Serialize};

use super::{
    feed::Feed,
    measurement::{Engine, Measurement},
    overhead::Overhead,
    statistics::{Spread, paired_ratio},
    target::Target,
};

/// All results of a run of the benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format. A new version means that a field has changed its meaning.
    pub schema: String,
    /// The date in UTC, for example `2026-01-31`.
    pub date: String,
    /// The command line.
    pub command: String,
    /// The description of the device on which the models were trained, and of its software.
    pub fingerprint: Fingerprint,
    /// The host's CPU.
    pub cpu: String,
    /// The versions of this workspace and, if there are peers, of Python and its packages.
    pub versions: BTreeMap<String, String>,
    /// The number of rounds.
    pub rounds: usize,
    /// The measurements: one row for each workload, precision and engine.
    pub rows: Vec<Row>,
    /// Floating-point operations per second of large bf16 matrix products, in each round; only on
    /// CUDA.
    pub bf16_matrix_rates: Vec<f64>,
    /// The overhead of the training loop; only on the CPU.
    pub overheads: Vec<Overhead>,
    /// For some workloads: the speed with the data in host memory.
    pub feeds: Vec<Feed>,
    /// The registry's targets, compared with the measurements.
    pub targets: Vec<Target>,
    /// Notes for the reader.
    pub notes: Vec<String>,
}

/// The measurements of one engine on one workload under one precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The workload.
    pub workload: String,
    /// The precision.
    pub precision: Precision,
    /// The engine.
    pub engine: Engine,
    /// Steps per second in each round.
    pub rates: Vec<f64>,
    /// The median and the quartiles of the rates.
    pub steps_per_second: Option<Spread>,
    /// The largest number of bytes that tensors occupied at one time.
    pub peak_memory_bytes: Option<u64>,
    /// Seconds from building the model to the end of its first step. They include loading kernels
    /// and, for some peers, compiling the model. Two effects limit comparisons: of this trainer's
    /// engines only the first loads kernels, because the others run later in the same process; and
    /// the peers compile at the same time.
    pub first_step_seconds: Option<f64>,
    /// Microseconds per step of the same model at a size so small that its tensor operations take
    /// almost no time. What remains is the work of the host, including the launches of CUDA
    /// kernels. Only for this trainer.
    pub host_microseconds: Option<f64>,
    /// The number of ids in a batch, if the examples are random ids; null for other examples.
    pub ids: Option<i64>,
    /// The number of floating-point operations in the matrix products of a step; null if the number
    /// is not known for this size of the workload.
    pub matrix_operations: Option<f64>,
    /// The reason why measurements are missing.
    pub failure: Option<String>,
}

impl Row {
    /// Creates a row from an engine's measurements.
    pub fn new(
        workload: &str,
        precision: Precision,
        measurement: Measurement,
        host_microseconds: Option<f64>,
        ids: Option<i64>,
        matrix_operations: Option<f64>,
    ) -> Self {
        Self {
            workload: workload.to_owned(),
            precision,
            engine: measurement.engine,
            steps_per_second: Spread::of(&measurement.rates),
            rates: measurement.rates,
            peak_memory_bytes: measurement.peak_memory_bytes,
            first_step_seconds: measurement.first_step_seconds,
            host_microseconds,
            ids,
            matrix_operations,
            failure: measurement.failure,
        }
    }
}

impl Report {
    /// Returns the row of an engine, if it was measured.
    pub fn row(&self, workload: &str, precision: Precision, engine: Engine) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.workload == workload
                && row.precision == precision
                && row.engine == engine
                && row.failure.is_none()
                && !row.rates.is_empty()
        })
    }

    /// Returns the row of this trainer with its default options: with CUDA graphs if possible.
    pub fn ours(&self, workload: &str, precision: Precision) -> Option<&Row> {
        let engine = if self.is_cuda() { Engine::Graph } else { Engine::Eager };
        self.row(workload, precision, engine)
    }

    /// Returns whether the models were trained on a CUDA device: the fingerprint (the machine's
    /// description) of such a device has no number of threads.
    pub fn is_cuda(&self) -> bool {
        self.fingerprint.threads == 0
    }

    /// Returns the speed of this trainer with its default options, divided by the speed of what
    /// `over` names: another engine, or this trainer under 32-true.
    pub fn speedup(&self, workload: &str, precision: Precision, over: Over) -> Option<f64> {
        self.speedup_of(self.ours(workload, precision)?, over)
    }

    /// Returns the speed in a row of this trainer, divided by the speed of what `over` names:
    /// another engine, or this trainer under 32-true.
    pub fn speedup_of(&self, ours: &Row, over: Over) -> Option<f64> {
        let (workload, precision) = (ours.workload.as_str(), ours.precision);
        let other = match over {
            Over::Engine(engine) => self.row(workload, precision, engine)?,
            Over::Baseline => self.ours(workload, Precision::F32True)?,
        };
        paired_ratio(&ours.rates, &other.rates)
    }

    /// Returns the memory in a row of this trainer, divided by this trainer's memory under 32-true.
    pub fn memory_of(&self, ours: &Row) -> Option<f64> {
        let baseline = self.ours(&ours.workload, Precision::F32True)?;
        Some(ours.peak_memory_bytes? as f64 / baseline.peak_memory_bytes? as f64)
    }

    /// Returns the memory of this trainer with its default options under `precision`, divided by
    /// its memory under 32-true.
    pub fn memory(&self, workload: &str, precision: Precision) -> Option<f64> {
        self.memory_of(self.ours(workload, precision)?)
    }

    /// Returns the rate at which a step computes its matrix products, as a fraction of the rate
    /// that was measured for large bf16 matrix products on the same device. The rate is computed
    /// from the whole time of the step.
    pub fn matrix_share(&self, row: &Row) -> Option<f64> {
        let operations = row.matrix_operations?;
        let reached: Vec<f64> = row.rates.iter().map(|rate| rate * operations).collect();
        paired_ratio(&reached, &self.bf16_matrix_rates)
    }

    /// Returns whether a row exists for the workload under the precision.
    pub fn measured(&self, workload: &str, precision: Precision) -> bool {
        self.rows.iter().any(|row| row.workload == workload && row.precision == precision)
    }
}

/// What the speed of this trainer is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Another engine, on the same workload under the same precision.
    Engine(Engine),
    /// This trainer on the same workload under 32-true.
    Baseline,
}
