//! The report of a benchmark: what was measured, on which machine, and which targets are met.

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
    /// The version of this format. The version changes if a field gets another meaning.
    pub schema: String,
    /// The date in UTC, for example `2026-01-31`.
    pub date: String,
    /// The command line with which the benchmark was started.
    pub command: String,
    /// The description of the device on which the models were trained, and of the software on this
    /// machine.
    pub fingerprint: Fingerprint,
    /// The name of the host's CPU.
    pub cpu: String,
    /// The versions of amp and libtorch and, if PyTorch engines were measured, of Python and its
    /// packages.
    pub versions: BTreeMap<String, String>,
    /// The number of rounds. In each round, every engine was measured once.
    pub rounds: usize,
    /// The measurements: one row for each workload, precision and engine.
    pub rows: Vec<Row>,
    /// The speed of large bf16 matrix products in each round, in floating-point operations per
    /// second. Measured only on CUDA.
    pub bf16_matrix_rates: Vec<f64>,
    /// How much time the training loop takes in addition to the tensor operations. Measured only on
    /// the CPU.
    pub overheads: Vec<Overhead>,
    /// The speed with the data in host memory and in device memory, for the workloads that declare
    /// this comparison with [`Workload::fed_on`](super::Workload::fed_on).
    pub feeds: Vec<Feed>,
    /// The targets for speed and memory that the registry declares, compared with the measurements.
    pub targets: Vec<Target>,
    /// Notes for the reader, for example which engines could not be measured.
    pub notes: Vec<String>,
}

/// The measurements of one engine on one workload under one precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The name of the workload.
    pub workload: String,
    /// The precision of the training.
    pub precision: Precision,
    /// The engine that was measured.
    pub engine: Engine,
    /// The speed in each round, in steps per second.
    pub rates: Vec<f64>,
    /// The median and the quartiles of the values in `rates`.
    pub steps_per_second: Option<Spread>,
    /// The largest number of bytes that tensors occupied at one time.
    pub peak_memory_bytes: Option<u64>,
    /// The time in seconds from building the model to the end of the first training step. It
    /// includes loading kernels and, for some PyTorch engines, compiling the model. Compare the
    /// times of different engines with care. This trainer's engines run in one process, so only the
    /// first of them loads kernels. The PyTorch engines all compile at the same time, so they slow
    /// each other down.
    pub first_step_seconds: Option<f64>,
    /// The time of a step in microseconds for the same model at a tiny size. At this size, tensor
    /// operations take almost no time, so this is the time of the host's work, including the
    /// launches of CUDA kernels. Measured only for this trainer.
    pub host_microseconds: Option<f64>,
    /// The number of token ids in a batch if the examples are random token ids; null for other
    /// examples.
    pub ids: Option<i64>,
    /// The number of floating-point operations in the matrix products of a step. Null if the
    /// workload declares this number for its own size, and the option `--size` has changed the
    /// size.
    pub matrix_operations: Option<f64>,
    /// The reason why this row has no measurements; null if it has measurements.
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
    /// Returns the row of this engine on this workload under this precision. Returns `None` if the
    /// engine was not measured.
    pub fn row(&self, workload: &str, precision: Precision, engine: Engine) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.workload == workload
                && row.precision == precision
                && row.engine == engine
                && row.failure.is_none()
                && !row.rates.is_empty()
        })
    }

    /// Returns the row of this trainer with its default options: with CUDA graphs on a CUDA device,
    /// without them on the CPU.
    pub fn ours(&self, workload: &str, precision: Precision) -> Option<&Row> {
        self.row(workload, precision, self.our_engine())
    }

    /// Returns the engine of [`ours`](Self::ours), with which the other engines are compared.
    pub fn our_engine(&self) -> Engine {
        if self.is_cuda() { Engine::Graph } else { Engine::Eager }
    }

    /// Returns whether the models were trained on a CUDA device. In this case the number of threads
    /// in the fingerprint (the description of the machine) is 0.
    pub fn is_cuda(&self) -> bool {
        self.fingerprint.threads == 0
    }

    /// Returns the speed of this trainer with its default options, divided by another speed. `over`
    /// names the other speed: that of another engine, or that of this trainer under 32-true.
    pub fn speedup(&self, workload: &str, precision: Precision, over: Over) -> Option<f64> {
        self.speedup_of(self.ours(workload, precision)?, over)
    }

    /// Returns the speed in the row `ours`, divided by another speed. `over` names the other speed:
    /// that of another engine, or that of this trainer under 32-true.
    pub fn speedup_of(&self, ours: &Row, over: Over) -> Option<f64> {
        let (workload, precision) = (ours.workload.as_str(), ours.precision);
        let other = match over {
            Over::Engine(engine) => self.row(workload, precision, engine)?,
            Over::Baseline => self.ours(workload, Precision::F32True)?,
        };
        paired_ratio(&ours.rates, &other.rates)
    }

    /// Returns the peak memory in the row `ours`, divided by the peak memory of this trainer under
    /// 32-true.
    pub fn memory_of(&self, ours: &Row) -> Option<f64> {
        let baseline = self.ours(&ours.workload, Precision::F32True)?;
        Some(ours.peak_memory_bytes? as f64 / baseline.peak_memory_bytes? as f64)
    }

    /// Returns the peak memory of this trainer under `precision`, divided by its peak memory under
    /// 32-true. The trainer has its default options.
    pub fn memory(&self, workload: &str, precision: Precision) -> Option<f64> {
        self.memory_of(self.ours(workload, precision)?)
    }

    /// Returns the floating-point operations of a step's matrix products, divided by the time of
    /// the whole step, as a fraction of the speed that was measured for large bf16 matrix products.
    pub fn matrix_share(&self, row: &Row) -> Option<f64> {
        let operations = row.matrix_operations?;
        let reached: Vec<f64> = row.rates.iter().map(|rate| rate * operations).collect();
        paired_ratio(&reached, &self.bf16_matrix_rates)
    }

    /// Returns whether some engine was measured on this workload under this precision.
    pub fn measured(&self, workload: &str, precision: Precision) -> bool {
        self.rows.iter().any(|row| row.workload == workload && row.precision == precision)
    }
}

/// What the speed of this trainer is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The speed of another engine, on the same workload under the same precision.
    Engine(Engine),
    /// The speed of this trainer under 32-true, on the same workload.
    Baseline,
}
