//! `cargo amp gate`: compares training under each precision with training under 32-true.
//! [`pool::Pool`] runs the [`job::Job`]s of every model, precision and seed, and [`crate::verdict`]
//! judges their results. The [`Report`] is then written as table, JUnit, JSON, Markdown and
//! annotations.

mod args;
mod budget;
mod cache;
mod checked;
mod command;
mod conformance;
mod controls;
mod coverage;
mod deadline;
mod finding;
mod goldens;
mod hooks;
mod identity;
mod invariants;
mod job;
mod outcome;
mod path;
mod plan;
mod pool;
mod reason;
mod render;
mod report;
mod runs;
mod seeds;
mod stages;
#[cfg(test)]
pub(crate) mod waves;

pub use crate::interceptor::{Intercepted, Interceptor};
pub use args::{GateArgs, Tier};
pub use cache::Cache;
pub use checked::{Checked, Comparison, Unit};
pub use command::command;
pub use coverage::{Coverage, Missing, Row};
pub use finding::{Cause, Finding};
pub use job::{Job, Task};
pub use outcome::Outcome;
pub use path::PathReport;
pub use plan::{Plan, Subject};
pub use pool::{Pool, WORKER, work};
pub use reason::{Failure, Reason};
pub use render::{annotations, junit, markdown, table};
pub use report::{JobTime, ModelReport, PrecisionResult, Report, Status};
pub use runs::product_error;

use std::{path::Path, thread, time::Instant};

use amp_core::{Error, Result, hardware, precision::Precision};

use self::runs::{Runs, draws_otherwise};
use crate::{length::Length, registry::Registry, verdict::Design};

/// The version of the format of [`Report`].
pub const SCHEMA: &str = "amp-gate/5";
/// The folder in which the gate caches the outcomes of its jobs.
pub const CACHE: &str = ".amp/cache";
/// How many failing combinations of model and precision are diagnosed by default. One diagnosis
/// takes dozens of runs.
pub const DIAGNOSED: usize = 3;

impl Plan {
    /// Judges one precision of a model by the results of the first `count` seeds, which have
    /// already run. `cut_short` says whether the time limit prevented further seeds.
    fn judge(
        &self,
        pool: &Pool,
        model: &Subject,
        precision: Precision,
        (count, cut_short): (usize, bool),
    ) -> PrecisionResult {
        let outcome = |precision, seed, task| {
            let found = pool.outcome(&self.job(model, precision, seed, task));
            found.cloned().unwrap_or_else(|| {
                Outcome::failed(Failure::new(Reason::Crashed, "the gate's job has no result"))
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
        let mut runs = None;
        if failures.is_empty() && count > 0 {
            let (untrained, baseline, own) = (&self.untrained(pool, model), &baseline, &own);
            let found = Runs { plan: self, model, precision, untrained, baseline, own }.check();
            failures.extend(found.failures);
            runs = Some(found.checked);
        }
        let path = outcome(precision, self.first_seed, Task::Path);
        failures.extend(draws_otherwise(&control, &path));
        failures.extend(steps.failures.iter().chain(&path.failures).cloned());
        if let (Some(folder), Some(base), Some(first)) =
            (&self.goldens, baseline.first(), own.first())
            && failures.is_empty()
        {
            let case = goldens::Case {
                model: model.name,
                length: self.length(model),
                is_changed: !self.changes.is_empty(),
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
        // A single difference has no standard deviation, so the statistical test needs at least two
        // differences.
        let enough = differences.filter(|differences| differences.len() > 1);
        let judgement = enough.map(|differences| design.judge(&differences));
        let plain = own.iter().chain(&baseline).map(|run| run.peak_memory_bytes).max();
        let watched = [&steps, &path].map(|run| run.peak_memory_bytes).into_iter().max();
        PrecisionResult {
            precision,
            status: Status::Inconclusive,
            judgement,
            failures,
            seeds: self.seeds(count).collect(),
            baseline: metrics(&baseline),
            metric: metrics(&own),
            runs,
            conformance: steps.conformance,
            path: path.path,
            peak_memory_bytes: plain.filter(|bytes| *bytes > 0),
            watched_peak_memory_bytes: watched.filter(|bytes| *bytes > 0),
            cut_short,
            rules_cut_short: steps.ended || path.ended || control.ended,
            skipped_steps: own.iter().map(|outcome| outcome.skipped_steps).sum(),
            finding: None,
        }
        .settle()
    }
}

/// Runs the plan. Without a time limit, judges each precision of each model with `plan.first`
/// seeds, and adds seeds if the result is inconclusive. With a time limit, runs one seed after
/// another until the limit.
///
/// # Errors
/// When the cache cannot be written.
pub fn run(plan: &Plan, pool: &mut Pool) -> Result<Report> {
    let started = Instant::now();
    let seeds = seeds::run(plan, pool, started)?;
    let mut fingerprint = None;
    let mut reports: Vec<ModelReport> =
        plan.models
            .iter()
            .enumerate()
            .map(|(at, model)| {
                let control = plan.job(model, Precision::F32True, plan.first_seed, Task::Frozen);
                let control = pool.outcome(&control);
                fingerprint = fingerprint.take().or(control.and_then(|c| c.fingerprint.clone()));
                let results = plan.precisions.iter().enumerate().map(|(place, precision)| {
                    plan.judge(pool, model, *precision, seeds.of(at, place))
                });
                ModelReport {
                    model: model.name.into(),
                    metric: model.judge.name.into(),
                    direction: model.judge.direction,
                    length: plan.length(model),
                    changes: plan.changes.clone(),
                    hyperparameters: control.map(|c| c.hyperparameters.clone()).unwrap_or_default(),
                    margin: model.margin,
                    learns_by: model.learns_by,
                    control: plan.untrained(pool, model).ok(),
                    results: results.collect(),
                }
            })
            .collect();
    let is_over = plan.time_limit.is_some_and(|limit| started.elapsed() >= limit);
    let undiagnosed = finding::find(plan, pool, &mut reports, is_over);
    let results = reports.iter().flat_map(|model| &model.results);
    Ok(Report {
        schema: SCHEMA.into(),
        status: results.map(|result| result.status).max().unwrap_or(Status::Pass),
        tier: plan.tier,
        fingerprint,
        alpha: plan.alpha,
        time_limit_seconds: plan.time_limit.map(|limit| limit.as_secs_f64()),
        models: reports,
        left_out: left_out(plan),
        undiagnosed,
        executed: pool.executed,
        cached: pool.cached,
        jobs: pool.times(plan),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Lists what the nightly tier would run in addition to this plan: precisions, longer runs, seeds.
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
        .filter(|model| plan.length(model).is_below(model.length()))
        .map(|model| match (plan.length(model), model.length()) {
            (Length::Epochs(own), Length::Epochs(all)) => {
                format!("{} ({own} of {all})", model.name)
            }
            (own, all) => format!("{} ({own} of {all})", model.name),
        })
        .collect();
    if !shorter.is_empty() {
        left.push(format!("full training runs: {}", shorter.join(", ")));
    }
    let (first, most) = Tier::Nightly.seeds();
    if plan.most < most {
        let (own, at_most) = (plan.first, plan.most);
        left.push(format!("{first} to {most} seeds instead of {own} to {at_most}"));
    }
    left
}

/// Starts the processes that run the jobs. On a GPU the jobs run in this process, and operations on
/// the host use all cores. On a CPU, starts `processes` processes with `threads` threads each. The
/// default is as many processes as the cores allow. The number of threads must not depend on the
/// number of processes: sums are split among threads, so another number of threads would change the
/// last digits of results.
///
/// # Errors
/// When a process cannot be started or the cache cannot be opened.
pub fn pool(
    registry: &Registry,
    device: &str,
    processes: Option<usize>,
    threads: u64,
    cache: Option<&Path>,
) -> Result<Pool> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = usize::try_from(threads).unwrap_or(cores);
    let (wanted, threads) = match hardware::parse_device(device)?.is_cuda() {
        true => (1, cores),
        false => (processes.unwrap_or((cores / threads).max(1)), threads),
    };
    if wanted < 1 {
        return Err(Error::config("processes 0: it must be at least 1"));
    }
    let cache = match cache {
        Some(folder) => Cache::open(folder, threads)?,
        None => Cache::none(),
    };
    Pool::new(registry, wanted, threads, cache)
}
