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

/// All figures of a run of the benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this format; it changes with the meaning of a field.
    pub schema: String,
    /// The day, in UTC, as `2026-01-31`.
    pub date: String,
    /// The command.
    pub command: String,
    /// The device that trained.
    pub fingerprint: Fingerprint,
    /// The host's CPU.
    pub cpu: String,
    /// The versions of this workspace and, if there are peers, of Python and its packages.
    pub versions: BTreeMap<String, String>,
    /// Rounds.
    pub rounds: usize,
    /// The measurements.
    pub rows: Vec<Row>,
    /// Operations per second of large bf16 matrix products, in each round; only on CUDA.
    pub bf16_matrix_rates: Vec<f64>,
    /// The overhead of the loop; only on the CPU.
    pub overheads: Vec<Overhead>,
    /// The cost of feeding from the host.
    pub feeds: Vec<Feed>,
    /// The targets.
    pub targets: Vec<Target>,
    /// Notes for the reader.
    pub notes: Vec<String>,
}

/// One workload under one precision by one engine.
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
    /// Their median and quartiles.
    pub steps_per_second: Option<Spread>,
    /// The most tensor bytes at once.
    pub peak_memory_bytes: Option<u64>,
    /// Seconds from building the model to the end of its first step: kernels are loaded, and the peers' models
    /// compiled. Engines of ours after the first find kernels loaded; peers compile beside one another.
    pub first_step_seconds: Option<f64>,
    /// Microseconds per step of the same model at a size at which its tensors take a negligible time: the
    /// remaining time is the host's work, and on CUDA the launches of kernels. Only for this trainer.
    pub host_microseconds: Option<f64>,
    /// Ids in a batch of random ids; null for other examples.
    pub ids: Option<i64>,
    /// Operations of a step's matrix products; null if the size was changed and the workload does not state them.
    pub matrix_operations: Option<f64>,
    /// The reason why figures are missing.
    pub failure: Option<String>,
}

impl Row {
    /// A row made from a candidate's measurements.
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
    /// The row of an engine that has figures.
    pub fn row(&self, workload: &str, precision: Precision, engine: Engine) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.workload == workload
                && row.precision == precision
                && row.engine == engine
                && row.failure.is_none()
                && !row.rates.is_empty()
        })
    }

    /// The row of this trainer as it runs by default: with CUDA graphs if possible.
    pub fn ours(&self, workload: &str, precision: Precision) -> Option<&Row> {
        let engine = if self.is_cuda() { Engine::Graph } else { Engine::Eager };
        self.row(workload, precision, engine)
    }

    /// Whether a CUDA device trained; a CUDA device has no threads.
    pub fn is_cuda(&self) -> bool {
        self.fingerprint.threads == 0
    }

    /// How many times as fast this trainer is as another engine, or as its own 32-true.
    pub fn speedup(&self, workload: &str, precision: Precision, over: Over) -> Option<f64> {
        self.speedup_of(self.ours(workload, precision)?, over)
    }

    /// How many times as fast one of this trainer's rows is.
    pub fn speedup_of(&self, ours: &Row, over: Over) -> Option<f64> {
        let (workload, precision) = (ours.workload.as_str(), ours.precision);
        let other = match over {
            Over::Engine(engine) => self.row(workload, precision, engine)?,
            Over::Baseline => self.ours(workload, Precision::F32True)?,
        };
        paired_ratio(&ours.rates, &other.rates)
    }

    /// The memory of one of this trainer's rows divided by the memory of its 32-true row.
    pub fn memory_of(&self, ours: &Row) -> Option<f64> {
        let baseline = self.ours(&ours.workload, Precision::F32True)?;
        Some(ours.peak_memory_bytes? as f64 / baseline.peak_memory_bytes? as f64)
    }

    /// This trainer's memory divided by its memory under 32-true.
    pub fn memory(&self, workload: &str, precision: Precision) -> Option<f64> {
        self.memory_of(self.ours(workload, precision)?)
    }

    /// The share of the device's measured bf16 matrix rate that the step of a row reaches, counting only
    /// the operations of its matrix products.
    pub fn matrix_share(&self, row: &Row) -> Option<f64> {
        let operations = row.matrix_operations?;
        let reached: Vec<f64> = row.rates.iter().map(|rate| rate * operations).collect();
        paired_ratio(&reached, &self.bf16_matrix_rates)
    }

    /// Whether the workload was measured under the precision.
    pub fn measured(&self, workload: &str, precision: Precision) -> bool {
        self.rows.iter().any(|row| row.workload == workload && row.precision == precision)
    }
}

/// The engine with which a speed is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Another engine, on the same workload under the same precision.
    Engine(Engine),
    /// This trainer's own 32-true.
    Baseline,
}
