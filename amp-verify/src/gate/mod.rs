//! `cargo amp gate`: [`job::Job`]s for every model, precision and seed → [`pool::Pool`] →
//! [`crate::verdict`] → [`Report`] → table, JUnit, JSON, Markdown, annotations.

mod args;
mod cache;
mod command;
mod conformance;
mod controls;
mod coverage;
mod finding;
mod goldens;
mod identity;
mod invariants;
mod job;
mod path;
mod plan;
mod pool;
mod reason;
mod render;
mod report;

pub use crate::tap::{Tap, Tapped};
pub use args::{GateArgs, Tier};
pub use cache::Cache;
pub use command::command;
pub use coverage::Coverage;
pub use finding::{Cause, Finding};
pub use job::{Job, Outcome, Task, product_error};
pub use path::{Checked, Examined};
pub use plan::{Plan, Subject};
pub use pool::{Pool, WORKER, work};
pub use reason::{Failure, Reason};
pub use render::{annotations, junit, markdown, table};
pub use report::{Cell, ModelReport, Report, Status};

use std::{path::Path, thread, time::Instant};

use amp_core::{Error, Result, hardware, memory::show_bytes, precision::Precision};

use crate::{
    registry::Registry,
    verdict::{Design, Verdict, mean},
};

/// The version of the [`Report`] format.
pub const SCHEMA: &str = "amp-gate/3";
/// The folder of the cache.
pub const CACHE: &str = ".amp/cache";
/// The largest relative error of a product of f32 matrices; TF32 has thirty times as much.
const F32_PRODUCT: f64 = 1e-5;
/// The accepted share of validation examples that are also training examples: texts and images may recur.
const OVERLAP: f64 = 0.05;
/// The number of failing cells that are diagnosed; each takes tens of runs.
pub const DIAGNOSED: usize = 3;

impl Plan {
    /// Judges one precision of a model with this number of seeds.
    fn cell(&self, pool: &Pool, model: &Subject, precision: Precision, count: usize) -> Cell {
        let outcome = |precision, seed, task| {
            let found = pool.outcome(&self.job(model, precision, seed, task));
            found.cloned().unwrap_or_else(|| {
                Outcome::failed(Failure::new(Reason::Crashed, "the job has no result"))
            })
        };
        let train = |precision| -> Vec<Outcome> {
            self.seeds(count).map(|seed| outcome(precision, seed, Task::Train)).collect()
        };
        let (baseline, own) = (train(Precision::F32True), train(precision));
        let control = outcome(Precision::F32True, self.first_seed, Task::Frozen);
        let steps = outcome(precision, self.first_seed, Task::Conformance);
        let mut failures: Vec<Failure> = Vec::new();
        for (whose, outcomes) in [("the baseline: ", &baseline), ("", &own)] {
            for (seed, outcome) in self.seeds(count).zip(outcomes.iter()) {
                failures.extend(outcome.failures.iter().map(|failure| {
                    Failure::new(failure.reason, format!("{whose}seed {seed}: {}", failure.text))
                }));
            }
        }
        let metrics = |outcomes: &[Outcome]| -> Vec<Option<f64>> {
            outcomes.iter().map(|outcome| outcome.metric).collect()
        };
        if failures.is_empty() {
            failures.extend(self.tf32_products(&baseline));
            failures.extend(pairing(&baseline, &own));
            failures.extend(memory(precision, &baseline, &own));
            failures.extend(learning(model, &control, &baseline, "the baseline's "));
            failures.extend(learning(model, &control, &own, ""));
        }
        let path = outcome(precision, self.first_seed, Task::Path);
        failures.extend(steps.failures.iter().chain(&path.failures).cloned());
        if let (Some(folder), Some(base), Some(first)) =
            (&self.goldens, baseline.first(), own.first())
            && failures.is_empty()
        {
            let case = goldens::Case {
                model: model.name,
                epochs: self.epochs(model),
                seed: self.first_seed,
                precision,
            };
            failures.extend(case.failures(folder, base, first));
        }
        let pairs = metrics(&baseline).into_iter().zip(metrics(&own));
        let regression = |(base, own): (Option<f64>, Option<f64>)| {
            Some(model.judge.direction.regression(base?, own?))
        };
        let differences: Option<Vec<f64>> = pairs.map(regression).collect();
        let design = Design {
            margin: model.margin,
            alpha: self.alpha,
            first: self.first,
            most: self.most,
            resolution: model.judge.resolution(own.first().map_or(1, |outcome| outcome.examples)),
            equivalence: self.equivalence,
        };
        let judgement = differences.map(|differences| design.judge(&differences));
        Cell {
            precision,
            status: Status::Inconclusive,
            judgement,
            failures,
            seeds: self.seeds(count).collect(),
            baseline: metrics(&baseline),
            metric: metrics(&own),
            conformance: steps.conformance,
            path: path.path,
            skipped_steps: own.iter().map(|outcome| outcome.skipped_steps).sum(),
            finding: None,
        }
        .settle()
    }
}

impl Plan {
    /// Whether the baseline multiplied in TF32 without being asked to.
    fn tf32_products(&self, baseline: &[Outcome]) -> Option<Failure> {
        let errors = baseline.iter().filter_map(|outcome| outcome.product_error);
        let error = errors.fold(0.0, f64::max);
        (!self.tf32 && error > F32_PRODUCT).then(|| {
            let text = format!(
                "the baseline: f32 matrix products are {error:.1e} off, as in TF32, which \
                 something has turned on"
            );
            Failure::new(Reason::PrecisionDidNotRun, text)
        })
    }
}

/// Whether both runs of each pair had the same weights, order and validation set, and the validation set
/// is not the training set.
fn pairing(baseline: &[Outcome], own: &[Outcome]) -> Option<Failure> {
    if baseline.iter().zip(own).any(|(base, own)| base.pairing != own.pairing) {
        let text =
            "initial weights, order of examples or validation set differ from the baseline's";
        return Some(Failure::new(Reason::NotPaired, text));
    }
    if baseline.iter().zip(own).any(|(base, own)| base.fingerprint != own.fingerprint) {
        let text = "the baseline ran with other settings: TF32, deterministic algorithms or device";
        return Some(Failure::new(Reason::NotPaired, text));
    }
    let overlap = own.iter().map(|outcome| outcome.overlap).fold(0.0, f64::max);
    (overlap > OVERLAP).then(|| {
        let text = format!("{:.0}% of the validation set are training examples", 100.0 * overlap);
        Failure::new(Reason::Contaminated, text)
    })
}

/// The most memory that a precision may use, in multiples of 32-true's with weights of the same width.
const MEMORY: f64 = 2.0;
/// The memory that libraries may allocate on CUDA in the first run that calls them.
const WORKSPACES: f64 = (1_u64 << 28) as f64;

/// Whether the precision's steps use no more memory than its tensors explain.
fn memory(precision: Precision, baseline: &[Outcome], own: &[Outcome]) -> Option<Failure> {
    let (first, own) = (baseline.first()?, own.first()?.peak_memory_bytes);
    let base = first.peak_memory_bytes;
    let width = precision.storage().elt_size_in_bytes() as f64 / 4.0;
    let is_cuda = first.fingerprint.as_ref().is_some_and(|f| f.capability.contains('.'));
    let most = MEMORY * width.max(1.0) * base as f64 + if is_cuda { WORKSPACES } else { 0.0 };
    (own as f64 > most).then(|| {
        let text = format!(
            "its steps use at most {}, those of 32-true {}",
            show_bytes(own),
            show_bytes(base)
        );
        Failure::new(Reason::Memory, text)
    })
}

fn learning(model: &Subject, control: &Outcome, runs: &[Outcome], whose: &str) -> Option<Failure> {
    let metrics: Vec<f64> = runs.iter().filter_map(|outcome| outcome.metric).collect();
    let Some(control) = control.metric else {
        return Some(Failure::new(Reason::DidNotLearn, "the control run without training failed"));
    };
    let reached = mean(&metrics);
    // Comparisons with NaN are false.
    let gained = model.judge.direction.regression(reached, control);
    let learned = gained >= model.learns_by;
    (!learned).then(|| {
        let text = format!(
            "{whose}{} of {reached:.3} is not better than the untrained {control:.3} by {}",
            model.judge.name, model.learns_by
        );
        Failure::new(Reason::DidNotLearn, text)
    })
}

/// Runs the plan: a first look at every model and precision, then a second look with all seeds at each
/// precision that the first look left inconclusive.
///
/// # Errors
/// When the cache cannot be written.
pub fn run(plan: &Plan, pool: &mut Pool) -> Result<Report> {
    let started = Instant::now();
    pool.run(plan.first_look())?;
    let (mut second, mut jobs) = (Vec::new(), Vec::new());
    for model in &plan.models {
        for precision in &plan.precisions {
            let cell = plan.cell(pool, model, *precision, plan.first);
            let open = cell.judgement.is_some_and(|j| j.verdict == Verdict::Inconclusive);
            if open && cell.failures.is_empty() && plan.most > plan.first {
                second.push((model.name, *precision));
                for seed in plan.seeds(plan.most) {
                    jobs.push(plan.job(model, Precision::F32True, seed, Task::Train));
                    jobs.push(plan.job(model, *precision, seed, Task::Train));
                }
            }
        }
    }
    pool.run(jobs)?;
    let mut fingerprint = None;
    let mut reports: Vec<ModelReport> = plan
        .models
        .iter()
        .map(|model| {
            let control = plan.job(model, Precision::F32True, plan.first_seed, Task::Frozen);
            let control = pool.outcome(&control);
            fingerprint = fingerprint.take().or(control.and_then(|c| c.fingerprint.clone()));
            let cells = plan.precisions.iter().map(|precision| {
                let again = second.contains(&(model.name, *precision));
                let count = if again { plan.most } else { plan.first };
                plan.cell(pool, model, *precision, count)
            });
            ModelReport {
                model: model.name.into(),
                metric: model.judge.name.into(),
                direction: model.judge.direction,
                epochs: plan.epochs(model),
                margin: model.margin,
                learns_by: model.learns_by,
                control: control.and_then(|outcome| outcome.metric),
                cells: cells.collect(),
            }
        })
        .collect();
    let undiagnosed = finding::find(plan, pool, &mut reports);
    let cells = reports.iter().flat_map(|model| &model.cells);
    Ok(Report {
        schema: SCHEMA.into(),
        status: cells.map(|cell| cell.status).max().unwrap_or(Status::Pass),
        tier: plan.tier,
        fingerprint,
        alpha: plan.alpha,
        models: reports,
        left_out: left_out(plan),
        undiagnosed,
        executed: pool.executed,
        cached: pool.cached,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// What the nightly tier runs in addition to this plan.
fn left_out(plan: &Plan) -> Vec<String> {
    let mut left = Vec::new();
    let missing: Vec<String> = Tier::Nightly
        .precisions()
        .iter()
        .filter(|precision| !plan.precisions.contains(precision))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        left.push(format!("precisions: {}", missing.join(", ")));
    }
    let shorter: Vec<String> = plan
        .models
        .iter()
        .filter(|model| plan.epochs(model) < model.epochs)
        .map(|model| format!("{} ({} of {})", model.name, plan.epochs(model), model.epochs))
        .collect();
    if !shorter.is_empty() {
        left.push(format!("full epochs: {}", shorter.join(", ")));
    }
    let (first, most) = Tier::Nightly.seeds();
    if plan.most < most {
        let (own, at_most) = (plan.first, plan.most);
        left.push(format!("seeds: {own} to {at_most} here, {first} to {most} nightly"));
    }
    left
}

/// The processes for the device: one per core of a CPU, which share its threads; for a GPU, this process
/// alone.
///
/// # Errors
/// When a process cannot be started or the cache cannot be opened.
pub fn pool(
    registry: &Registry,
    device: &str,
    processes: Option<usize>,
    cache: Option<&Path>,
) -> Result<Pool> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let wanted = match hardware::parse_device(device)?.is_cuda() {
        true => 1,
        false => processes.unwrap_or(cores),
    };
    if wanted < 1 {
        return Err(Error::config("processes 0: it must be at least 1"));
    }
    let threads = (cores / wanted).max(1);
    let cache = match cache {
        Some(folder) => Cache::open(folder, threads)?,
        None => Cache::none(),
    };
    Pool::new(registry, wanted, threads, cache)
}
