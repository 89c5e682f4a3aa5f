//! Measures the speed of this trainer and of its [`peers`] (other training engines, such as
//! Lightning). [`mod@interleaved`] lets the engines train a [`workload`] in turns. [`report`]
//! compares the measurements with the [`target`]s that the registry declares.

mod args;
pub mod clock;
pub mod feed;
pub mod interleaved;
mod ours;
pub mod peers;
mod rate;
pub mod workload;

pub use crate::speed::{
    Devices, Overhead, Report, Target, Workload, overhead, report, statistics, target,
};
pub use args::{BenchArgs, Plan};

use std::time::Instant;

use amp_core::{
    Result,
    hardware::{self, Fingerprint, LIBTORCH_VERSION},
    precision::Precision,
    tch::Device,
};

use self::{
    clock::Clock,
    interleaved::{Candidate, Engine, interleaved},
    ours::Ours,
    peers::{Entry, Peer, Python},
    report::Row,
    statistics::Spread,
    workload::{Size, Task},
};
use crate::registry::Registry;

/// Measures the requested workloads (models with their data and sizes). Before each measurement,
/// passes a message about the progress to `tell`.
///
/// # Errors
/// When an option is invalid, or this trainer fails. An error of a peer (another engine, such as
/// Lightning) does not end the benchmark; the report contains it.
pub fn run(registry: &Registry, args: &BenchArgs, tell: &dyn Fn(&str)) -> Result<Report> {
    let begun = Instant::now();
    let plan = args.plan(registry)?;
    let mut clock = Clock::new(plan.time_limit, || begun.elapsed());
    let mut notes = Vec::new();
    if cfg!(debug_assertions) {
        notes.push(
            "this is a debug build: use `cargo amp bench`, which builds in release mode, or \
             `cargo run --release`"
                .to_owned(),
        );
    }
    let mut versions = [("amp", env!("CARGO_PKG_VERSION")), ("libtorch", LIBTORCH_VERSION)]
        .map(|(name, version)| (name.to_owned(), version.to_owned()));
    versions.sort();
    let mut report = Report {
        schema: "amp-bench/2".to_owned(),
        date: chrono::Utc::now().format("%Y-%m-%d").to_string(),
        command: command(),
        fingerprint: Fingerprint::of(plan.device)?,
        cpu: hardware::Report::gather()?.cpu.name,
        versions: versions.into(),
        rounds: plan.rounds,
        rows: Vec::new(),
        bf16_matrix_rates: Vec::new(),
        overheads: Vec::new(),
        feeds: Vec::new(),
        targets: Vec::new(),
        notes,
    };
    let (python, mut peers) = match args.peers || !args.peer.is_empty() {
        true => {
            let python = Python::new(registry, &args.python, args.peers_script.as_deref())?;
            let engines = peers::engines(plan.device, &args.peer);
            let peers = peers::start(&python, &engines, plan.device, &mut report.notes);
            (Some(python), peers)
        }
        false => (None, Vec::new()),
    };
    for peer in &peers {
        report.versions.extend(peer.versions.clone());
    }
    if plan.device.is_cuda() {
        tell("the speed of bf16 matrix products");
        // The first measured rate is discarded: it is too low, because the device was idle before.
        rate::bf16_matrix_rate(plan.device)?;
        for _ in 0..plan.rounds {
            report.bf16_matrix_rates.push(rate::bf16_matrix_rate(plan.device)?);
        }
    } else {
        if let Some(measure) = &registry.bench.overheads {
            tell("the overhead of the training loop");
            report.overheads = measure()?;
        }
    }
    for workload in &plan.workloads {
        for precision in plan.precisions.iter().filter(|one| workload.is_measured_in(**one)) {
            let name = format!("{} under {precision}", workload.name());
            let rows = clock.run(&name, || {
                tell(&name);
                compare(&plan, workload, *precision, &mut peers)
            });
            for row in rows.transpose()?.into_iter().flatten() {
                let rate = row.steps_per_second.map_or(f64::NAN, |rate| rate.median);
                tell(&format!("{name}, {}: {rate:.2} steps/s", row.engine.name()));
                report.rows.push(row);
            }
        }
    }
    // The processes of the other engines end here, because the next measurements need their memory.
    drop((peers, python));
    if plan.feed_bytes > 0 {
        for (workload, precision) in fed(&plan) {
            let name = format!("{} under {precision}, data in host memory", workload.name());
            let steps = plan.steps.unwrap_or_else(|| workload.steps(plan.device));
            let Plan { device, feed_bytes, rounds, .. } = plan;
            let fed = clock.run(&name, || {
                tell(&name);
                feed::measure(workload, precision, device, feed_bytes, rounds, steps)
            });
            report.feeds.extend(fed.transpose()?);
        }
    }
    report.notes.extend(clock.note());
    if let Some(targets) = registry.bench.targets {
        report.targets = targets(&report);
    }
    Ok(report)
}

/// Measures this trainer and the other engines on one workload (a model with its data) under one
/// precision.
fn compare(
    plan: &Plan,
    workload: &Task,
    precision: Precision,
    peers: &mut [Peer],
) -> Result<Vec<Row>> {
    let steps = plan.steps.unwrap_or_else(|| workload.steps(plan.device));
    let ours: &[Engine] = match plan.device.is_cuda() {
        // The workload is also measured with 16-bit gradients, and with 16-bit gradients and 8-bit
        // optimizer state.
        true if workload.has_reduced_state() && precision != Precision::F32True => {
            &[Engine::Eager, Engine::Graph, Engine::Graph16Bit, Engine::GraphLean]
        }
        true if workload.has_unchecked_steps() => {
            &[Engine::Eager, Engine::Graph, Engine::GraphUnchecked]
        }
        true => &[Engine::Eager, Engine::Graph],
        false => &[Engine::Eager],
    };
    let new = |engine, size| Ours::new(engine, workload, size, precision, plan.device, steps);
    let mut candidates: Vec<Box<dyn Candidate + '_>> = Vec::new();
    for engine in ours {
        candidates.push(Box::new(new(*engine, Size::Full)));
    }
    for peer in peers.iter_mut().filter(|peer| peer.trains(workload)) {
        candidates.push(Box::new(Entry::new(peer, workload, precision, steps)));
    }
    let measurements = interleaved(&mut candidates, plan.rounds);
    drop(candidates);
    let mut tiny: Vec<Box<dyn Candidate + '_>> = Vec::new();
    for engine in ours.iter().filter(|_| workload.has_tiny()) {
        tiny.push(Box::new(new(*engine, Size::Tiny)));
    }
    let host = interleaved(&mut tiny, plan.rounds);
    let host_microseconds = |engine: Engine| {
        let measurement = host.iter().find(|measurement| measurement.engine == engine)?;
        Spread::of(&measurement.rates).map(|rates| 1e6 / rates.median)
    };
    let operations = workload.matrix_operations(workload.build(Size::Full)?.as_ref());
    let ids = workload.tokens().map(|length| length * workload.batch);
    let row = |measurement: interleaved::Measurement| {
        let host = host_microseconds(measurement.engine);
        Row::new(workload.name(), precision, measurement, host, ids, operations)
    };
    Ok(measurements.into_iter().map(row).collect())
}

/// Returns the workloads that are also measured with their data in host memory, each with the
/// precision for this measurement: bf16-mixed on CUDA, 32-true on the CPU.
fn fed(plan: &Plan) -> Vec<(&Task, Precision)> {
    let precision = match plan.device {
        Device::Cuda(_) => Precision::Bf16Mixed,
        _ => Precision::F32True,
    };
    let workloads = plan.workloads.iter().filter(|workload| workload.is_fed_on(plan.device));
    workloads.map(|workload| (workload, precision)).collect()
}

/// Returns the command line with which the benchmark was started.
fn command() -> String {
    let arguments = std::env::args().skip(1);
    std::iter::once("cargo amp".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}
