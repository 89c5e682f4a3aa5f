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
    /// The version of this format; a changed meaning of a field changes it.
    pub schema: String,
    /// The date in UTC, for example `2026-01-31`.
    pub date: String,
    /// The command line.
    pub command: String,
    /// The device on which the models were trained.
    pub fingerprint: Fingerprint,
    /// The host's CPU.
    pub cpu: String,
    /// The versions of this workspace and, if there are peers, of Python and its packages.
    pub versions: BTreeMap<String, String>,
    /// The number of rounds.
    pub rounds: usize,
    /// The measurements.
    pub rows: Vec<Row>,
    /// Floating-point operations per second of large bf16 matrix products, in each round; only on
    /// CUDA.
    pub bf16_matrix_rates: Vec<f64>,
    /// The overhead of the training loop; only on the CPU.
    pub overheads: Vec<Overhead>,
    /// The cost of feeding data from the host.
    pub feeds: Vec<Feed>,
    /// The targets.
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
    /// The peak of tensor bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Seconds from building the model to the end of its first step: kernels are loaded, and the peers' models
    /// compiled. Engines of ours after the first find kernels loaded; peers compile beside one another.
    pub first_step_seconds: Option<f64>,
    /// Microseconds per step of the same model at a size so small that its tensors take negligible
    /// time. What remains is the work of the host, and on CUDA the launches of kernels. Only for
    /// this trainer.
    pub host_microseconds: Option<f64>,
    /// Ids in a batch of random ids; null for other examples.
    pub ids: Option<i64>,
    /// The number of floating-point operations in the matrix products of a step; null if it is not known for
    /// the size.
    pub matrix_operations: Option<f64>,
    /// The reason why figures are missing.
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

    /// Returns whether the models were trained on a CUDA device. Its fingerprint has no number of
    /// threads.
    pub fn is_cuda(&self) -> bool {
        self.fingerprint.threads == 0
    }

    /// Returns the speed of this trainer divided by the speed of another engine, or of its own
    /// 32-true.
    pub fn speedup(&self, workload: &str, precision: Precision, over: Over) -> Option<f64> {
        self.speedup_of(self.ours(workload, precision)?, over)
    }

    /// Returns the speed of one of this trainer's rows divided by that of another engine or of its
    /// own 32-true.
    pub fn speedup_of(&self, ours: &Row, over: Over) -> Option<f64> {
        let (workload, precision) = (ours.workload.as_str(), ours.precision);
        let other = match over {
            Over::Engine(engine) => self.row(workload, precision, engine)?,
            Over::Baseline => self.ours(workload, Precision::F32True)?,
        };
        paired_ratio(&ours.rates, &other.rates)
    }

    /// Returns the memory of one of this trainer's rows divided by the memory of its 32-true row.
    pub fn memory_of(&self, ours: &Row) -> Option<f64> {
        let baseline = self.ours(&ours.workload, Precision::F32True)?;
        Some(ours.peak_memory_bytes? as f64 / baseline.peak_memory_bytes? as f64)
    }

    /// Returns this trainer's memory divided by its memory under 32-true.
    pub fn memory(&self, workload: &str, precision: Precision) -> Option<f64> {
        self.memory_of(self.ours(workload, precision)?)
    }

    /// Returns the share of the device's measured bf16 matrix rate that a step reaches. Only the
    /// operations of its matrix products count.
    pub fn matrix_share(&self, row: &Row) -> Option<f64> {
        let operations = row.matrix_operations?;
        let reached: Vec<f64> = row.rates.iter().map(|rate| rate * operations).collect();
        paired_ratio(&reached, &self.bf16_matrix_rates)
    }

    /// Returns whether the workload was measured under the precision.
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
