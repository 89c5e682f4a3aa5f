//! What was measured, and what follows from it.

use std::collections::BTreeMap;

use amp_core::{hardware::Fingerprint, precision::Precision};
use serde::{Deserialize, Serialize};

use super::{
    contest::{Engine, Score},
    feed::Feed,
    overhead::Overhead,
    statistics::{Spread, paired_ratio},
    target::{
        Goal::{self, AtLeast, AtMost, Below},
        Target, Unit,
    },
};

/// All figures of a run of the benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The form of this object; a change of meaning changes it.
    pub schema: String,
    /// The day, in UTC, as `2026-01-31`.
    pub date: String,
    /// What was typed.
    pub command: String,
    /// The device that trained.
    pub fingerprint: Fingerprint,
    /// The host's CPU.
    pub cpu: String,
    /// Of this workspace, and of Python and its packages where there are peers.
    pub versions: BTreeMap<String, String>,
    /// Rounds.
    pub rounds: usize,
    /// Who trained what and how fast.
    pub rows: Vec<Row>,
    /// Operations a second of large bf16 matrix products, in each round; on CUDA.
    pub bf16_matrix_rates: Vec<f64>,
    /// The loop's own cost; on the CPU.
    pub overheads: Vec<Overhead>,
    /// What feeding from the host costs.
    pub feeds: Vec<Feed>,
    /// What is aimed at.
    pub targets: Vec<Target>,
    /// What should be known.
    pub notes: Vec<String>,
}

/// One workload under one precision by one engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The workload.
    pub workload: String,
    /// The precision.
    pub precision: Precision,
    /// Who trained.
    pub engine: Engine,
    /// Steps a second in each round.
    pub rates: Vec<f64>,
    /// Their median and quartiles.
    pub steps_per_second: Option<Spread>,
    /// The most tensor bytes at once.
    pub peak_memory_bytes: Option<u64>,
    /// Microseconds of a step of the same model so small that its tensors cost next to nothing:
    /// what remains is the host's work, and on CUDA launching kernels. Ours alone.
    pub host_microseconds: Option<f64>,
    /// Operations of a step's matrix products.
    pub matrix_operations: f64,
    /// Why there are no more figures.
    pub failure: Option<String>,
}

impl Row {
    /// Of what a contestant did.
    pub fn new(
        workload: &str,
        precision: Precision,
        score: Score,
        host_microseconds: Option<f64>,
        matrix_operations: f64,
    ) -> Self {
        Self {
            workload: workload.to_owned(),
            precision,
            engine: score.engine,
            steps_per_second: Spread::of(&score.rates),
            rates: score.rates,
            peak_memory_bytes: score.peak_memory_bytes,
            host_microseconds,
            matrix_operations,
            failure: score.failure,
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

    /// Our trainer as it runs by default: with CUDA graphs where there are any.
    pub fn ours(&self, workload: &str, precision: Precision) -> Option<&Row> {
        let engine = if self.is_cuda() { Engine::Graph } else { Engine::Eager };
        self.row(workload, precision, engine)
    }

    /// Whether a CUDA device trained: it has no threads.
    pub fn is_cuda(&self) -> bool {
        self.fingerprint.threads == 0
    }

    /// How many times as fast ours is as another engine, or as our own 32-true.
    fn speedup(&self, workload: &str, precision: Precision, over: Over) -> Option<f64> {
        self.speedup_of(self.ours(workload, precision)?, over)
    }

    fn speedup_of(&self, ours: &Row, over: Over) -> Option<f64> {
        let (workload, precision) = (ours.workload.as_str(), ours.precision);
        let other = match over {
            Over::Engine(engine) => self.row(workload, precision, engine)?,
            Over::Baseline => self.ours(workload, Precision::F32True)?,
        };
        paired_ratio(&ours.rates, &other.rates)
    }

    /// The memory of a row of ours over that of our own 32-true.
    fn memory_of(&self, ours: &Row) -> Option<f64> {
        let baseline = self.ours(&ours.workload, Precision::F32True)?;
        Some(ours.peak_memory_bytes? as f64 / baseline.peak_memory_bytes? as f64)
    }

    fn memory(&self, workload: &str, precision: Precision) -> Option<f64> {
        self.memory_of(self.ours(workload, precision)?)
    }

    /// The share of the device's measured bf16 matrix rate that the step of a row reaches, if all
    /// its operations were those of its matrix products.
    pub fn matrix_share(&self, row: &Row) -> Option<f64> {
        let reached: Vec<f64> = row.rates.iter().map(|rate| rate * row.matrix_operations).collect();
        paired_ratio(&reached, &self.bf16_matrix_rates)
    }

    /// Judges every target that the workloads and precisions of this report are about.
    pub fn judge(&mut self) {
        let mut targets = if self.is_cuda() { self.cuda_targets() } else { self.cpu_targets() };
        for feed in &self.feeds {
            if self.is_cuda() {
                let what = format!(
                    "{} {}: cost of feeding {} GB from the host",
                    feed.workload,
                    feed.precision,
                    feed.bytes as f64 / 1e9
                );
                targets.push(Target::new(what, Below(0.03), Unit::Percent, feed.cost()));
            }
        }
        self.targets = targets;
    }

    fn measured(&self, workload: &str, precision: Precision) -> bool {
        self.rows.iter().any(|row| row.workload == workload && row.precision == precision)
    }

    fn cuda_targets(&self) -> Vec<Target> {
        use Precision::{Bf16Mixed, F16Mixed, F32True};
        let mut targets = Targets::default();
        for workload in ["demo", "advanced"] {
            for precision in [F32True, F16Mixed, Bf16Mixed] {
                if !self.measured(workload, precision) {
                    continue;
                }
                let name = format!("{workload} {precision}");
                let over = |engine| self.speedup(workload, precision, Over::Engine(engine));
                targets.times(&name, "Lightning", AtLeast(20.0), over(Engine::Lightning));
                targets.times(&name, "torch.compile", AtLeast(5.0), over(Engine::TorchCompile));
                if precision != F32True {
                    let speedup = self.speedup(workload, precision, Over::Baseline);
                    targets.times(&name, "our 32-true", AtLeast(1.3), speedup);
                    let memory = self.memory(workload, precision);
                    targets.memory(&name, AtMost(1.0), memory);
                }
            }
        }
        for (engine, name) in [
            (Engine::Graph, "wide bf16-mixed"),
            (Engine::Graph16Bit, "wide bf16-mixed, gradients in 16 bits"),
            (Engine::GraphLean, "wide bf16-mixed, averages in 8 bits as well"),
        ] {
            if !self.measured("wide", Bf16Mixed) {
                continue;
            }
            let row = self.row("wide", Bf16Mixed, engine);
            targets.0.push(Target::new(
                format!("{name}: share of the measured bf16 matrix rate"),
                AtLeast(0.65),
                Unit::Percent,
                row.and_then(|row| self.matrix_share(row)),
            ));
            let over = Over::Engine(Engine::TorchCompile);
            let compiled = row.and_then(|row| self.speedup_of(row, over));
            targets.times(name, "torch.compile", AtLeast(1.2), compiled);
            targets.memory(name, AtMost(0.6), row.and_then(|row| self.memory_of(row)));
        }
        targets.0
    }

    fn cpu_targets(&self) -> Vec<Target> {
        let mut targets = Targets::default();
        for overhead in &self.overheads {
            targets.0.push(Target::new(
                format!("{}: loop overhead a step", overhead.model),
                Below(20.0),
                Unit::Microseconds,
                Some(overhead.median()),
            ));
        }
        for (workload, least) in [("precision-test", 3.0), ("demo", 1.1)] {
            if self.measured(workload, Precision::F32True) {
                let over = Over::Engine(Engine::Lightning);
                let speedup = self.speedup(workload, Precision::F32True, over);
                let name = format!("{workload} 32-true");
                targets.times(&name, "Lightning", AtLeast(least), speedup);
            }
        }
        targets.0
    }
}

#[derive(Clone, Copy)]
enum Over {
    Engine(Engine),
    Baseline,
}

#[derive(Default)]
struct Targets(Vec<Target>);

impl Targets {
    fn times(&mut self, name: &str, other: &str, goal: Goal, measured: Option<f64>) {
        let what = format!("{name}: speed over {other}");
        self.0.push(Target::new(what, goal, Unit::Times, measured));
    }

    fn memory(&mut self, name: &str, goal: Goal, measured: Option<f64>) {
        let what = format!("{name}: memory over our 32-true");
        self.0.push(Target::new(what, goal, Unit::Percent, measured));
    }
}
