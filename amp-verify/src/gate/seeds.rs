//! Trains the models with all seeds. If there is a time limit, trains with one seed after another.

use std::time::{Duration, Instant};

use amp_core::{Result, precision::Precision};

use super::{Plan, Pool, controls, job::Task};
use crate::verdict::{Verdict, evaluations};

/// With how many seeds each model was trained under each precision.
pub(super) struct Seeds {
    /// The number of seeds, by model and precision.
    counts: Vec<Vec<usize>>,
    /// Whether the time limit prevented training runs with further seeds, by model and precision.
    cut_short: Vec<Vec<bool>>,
}

impl Seeds {
    fn new(plan: &Plan, count: usize) -> Self {
        let (models, precisions) = (plan.models.len(), plan.precisions.len());
        Self {
            counts: vec![vec![count; precisions]; models],
            cut_short: vec![vec![false; precisions]; models],
        }
    }

    /// Returns with how many seeds a model was trained under a precision, and whether the time
    /// limit prevented training runs with further seeds.
    pub(super) fn of(&self, model: usize, precision: usize) -> (usize, bool) {
        (self.counts[model][precision], self.cut_short[model][precision])
    }
}

/// Runs the plan's jobs. Without a time limit, first trains every model with `plan.first` seeds.
/// Then, as long as the statistical test of a precision is inconclusive, trains with more seeds and
/// evaluates the test again. Trains with at most `plan.most` seeds in all.
pub(super) fn run(plan: &Plan, pool: &mut Pool, started: Instant) -> Result<Seeds> {
    match plan.time_limit {
        _ if plan.rules_only => {
            pool.run(plan.rules())?;
            Ok(Seeds::new(plan, 0))
        }
        Some(limit) => within(plan, pool, started, limit),
        None => all(plan, pool),
    }
}

fn all(plan: &Plan, pool: &mut Pool) -> Result<Seeds> {
    pool.run(plan.first_look())?;
    controls::complete(plan, pool)?;
    let mut seeds = Seeds::new(plan, plan.first);
    for evaluation in evaluations(plan.first, plan.most).windows(2) {
        let [before, count] = *evaluation else { continue };
        let mut jobs = Vec::new();
        for (at, model) in plan.models.iter().enumerate() {
            for (place, precision) in plan.precisions.iter().enumerate() {
                let was_reached = seeds.counts[at][place] == before;
                if was_reached && plan.is_open(pool, at, *precision, before) {
                    seeds.counts[at][place] = count;
                    let pairs = |seed| plan.pairs(model, std::slice::from_ref(precision), seed);
                    jobs.extend(plan.seeds(count).flat_map(pairs));
                }
            }
        }
        pool.run(jobs)?;
    }
    Ok(seeds)
}

/// Runs the jobs that check the gate's rules, and then trains with one seed after another. Stops
/// when the remaining time is not longer than the slowest seed so far took.
///
/// The moment at which the time limit ends the training depends only on the time that the seeds
/// take, and not on their metrics. So stopping early does not change the significance level of the
/// statistical test.
fn within(plan: &Plan, pool: &mut Pool, started: Instant, limit: Duration) -> Result<Seeds> {
    // If the end of the time limit is too far in the future for an `Instant`, these jobs have no
    // time limit.
    pool.run_until(started.checked_add(limit), plan.rules())?;
    let mut seeds = Seeds::new(plan, 0);
    let places = 0..plan.precisions.len();
    let all = (0..plan.models.len()).flat_map(|model| places.clone().map(move |at| (model, at)));
    // Leaves out each combination of model and precision that breaks a rule, because no seed can
    // change its verdict.
    let mut open: Vec<(usize, usize)> =
        all.filter(|(model, at)| plan.holds_rules(pool, *model, plan.precisions[*at])).collect();
    let evaluations = evaluations(plan.first, plan.most);
    let (mut count, mut longest) = (0, Duration::ZERO);
    while count < plan.most && !open.is_empty() {
        let begun = Instant::now();
        if limit.saturating_sub(started.elapsed()) <= longest {
            for (model, at) in open {
                seeds.cut_short[model][at] = true;
            }
            break;
        }
        let seed = plan.first_seed + count as u64;
        let jobs = open.iter().flat_map(|(model, at)| {
            let precision = plan.precisions.get(*at..=*at).unwrap_or_default();
            plan.pairs(&plan.models[*model], precision, seed)
        });
        pool.run(jobs.collect::<Vec<_>>())?;
        longest = longest.max(begun.elapsed());
        count += 1;
        for (model, at) in &open {
            seeds.counts[*model][*at] = count;
        }
        if count == plan.first {
            controls::complete(plan, pool)?;
        }
        if evaluations.contains(&count) {
            open.retain(|(model, at)| plan.is_open(pool, *model, plan.precisions[*at], count));
        }
    }
    Ok(seeds)
}

impl Plan {
    /// Returns whether a model and a precision need more seeds than `count`: there is no failure,
    /// and the statistical test with `count` seeds is inconclusive.
    fn is_open(&self, pool: &Pool, model: usize, precision: Precision, count: usize) -> bool {
        let result = self.judge(pool, &self.models[model], precision, (count, false));
        let verdict = result.judgement.map(|judgement| judgement.verdict);
        result.failures.is_empty() && verdict == Some(Verdict::Inconclusive)
    }

    fn holds_rules(&self, pool: &Pool, model: usize, precision: Precision) -> bool {
        let model = &self.models[model];
        let failed = |task| {
            let job = self.job(model, precision, self.first_seed, task);
            pool.outcome(&job).is_none_or(|outcome| !outcome.failures.is_empty())
        };
        !failed(Task::Conformance) && !failed(Task::Path)
    }
}
