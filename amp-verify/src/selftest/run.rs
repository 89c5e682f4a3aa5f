use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use amp_core::{
    Error, Result, hardware,
    precision::{Kernels, Precision},
    trainer::Check,
};

use super::{Fault, FaultResult, Report, SelftestArgs, report::is_red, unchanged::Unchanged};
use crate::{
    changes::Changes,
    gate::{self, Failure, Job, Plan, Pool, Reason, Subject, Task, Tier},
    golden,
    registry::{Model, Registry},
};

/// The precision of the runs with faults. 16-mixed uses more parts of training than any other
/// precision, for example the loss scaler.
pub(super) const PRECISION: Precision = Precision::F16Mixed;

/// The number of seeds of the full training runs, which are made for a fault that breaks no rule.
const SEEDS: usize = 3;

/// Puts each fault into training and checks that the gate reports it. Then lets the gate judge
/// unchanged training with new seeds, and counts the false alarms.
///
/// # Errors
/// When the name of a fault is unknown or the device does not exist.
pub fn run(registry: &Registry, args: &SelftestArgs) -> Result<Report> {
    let started = Instant::now();
    let faults = if args.unchanged { Vec::new() } else { chosen(&args.fault)? };
    let is_cuda = hardware::parse_device(&args.device)?.is_cuda();
    let changes = args.changes.changes();
    if !changes.is_empty() && args.model.is_none() {
        return Err(Error::config("selftest: the options change a model: name it with --model"));
    }
    let chosen_model = args.model.as_deref().map(|name| registry.find(Some(name))).transpose()?;
    let mut pool = gate::pool(registry, &args.device, args.processes, 1, None)?;
    let (mut plans, mut left_out) = (Vec::new(), Vec::new());
    for fault in faults {
        if fault.needs_cuda() && !is_cuda {
            left_out.push(format!("{}: it needs a CUDA device", fault.about()));
            continue;
        }
        match (chosen_model.or_else(|| fault.subject(registry)), fault.needs()) {
            (Some(model), _) => {
                let plan = plan(registry, args, model, &changes)?;
                let (precisions, first, most) = (vec![PRECISION], SEEDS, SEEDS);
                // A broken training invariant would end a run before another check could report the
                // fault. So invariants are not checked in these runs, but in a job of their own.
                let (fault_of_plan, check) = (Some(fault), Check::Off);
                let own = Plan { fault: fault_of_plan, check, precisions, first, most, ..plan };
                plans.push((fault, own));
            }
            (None, needs) => left_out.push(format!(
                "{}: no model declares that it reveals this fault; such a model needs {}",
                fault.about(),
                needs.unwrap_or("a model")
            )),
        }
    }
    let (mut results, not_counted) = results(&plans, args.rules, &mut pool)?;
    if args.diagnose {
        for (result, (_, plan)) in
            results.iter_mut().zip(&plans).filter(|(result, _)| !result.trained)
        {
            result.finding = cause(plan, &mut pool)?;
        }
    }
    let models = chosen_model.map_or_else(|| registry.models().collect(), |model| vec![model]);
    let (mut false_alarms, mut verdicts, mut inconclusive) = (Vec::new(), 0, 0);
    for index in 0..args.repetitions {
        // Each repetition uses the next model of the registry.
        let model = models[index as usize % models.len()];
        let mut plan = plan(registry, args, model, &changes)?;
        plan.first_seed = args.first_seed + 100 * index;
        plan.rules_only = args.rules;
        if !args.precision.is_empty() {
            plan.precisions.clone_from(&args.precision);
        }
        let report = gate::run(&plan, &mut pool)?;
        for result in report.models.iter().flat_map(|model| &model.results) {
            verdicts += 1;
            if is_red(result.status) {
                let (precision, seed) = (result.precision, plan.first_seed);
                false_alarms.push(format!(
                    "{} under {precision}, seeds from {seed}: {}",
                    model.name,
                    result.note()
                ));
            } else if result.status != gate::Status::Pass && !args.rules {
                inconclusive += 1;
            }
        }
    }
    Ok(Report {
        faults: results,
        not_counted,
        left_out,
        repetitions: args.repetitions,
        verdicts,
        false_alarms,
        inconclusive,
        nan_golden_refused: golden::refuses_not_a_number(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Runs the gate on training with a fault, and returns the cause that its diagnosis finds. No full
/// training runs are made, because a rule already reports the fault.
fn cause(plan: &Plan, pool: &mut Pool) -> Result<Option<String>> {
    let seeds = Some(Duration::MAX);
    let plan = Plan { diagnosed: 1, time_limit: seeds, ..plan.clone() };
    let report = gate::run(&plan, pool)?;
    let mut results = report.models.iter().flat_map(|model| &model.results);
    Ok(results.find_map(|result| result.finding.as_ref().map(|finding| finding.text.clone())))
}

fn chosen(names: &[String]) -> Result<Vec<Fault>> {
    if names.is_empty() {
        return Ok(Fault::ALL.to_vec());
    }
    let parse = |name: &String| {
        let known = Fault::ALL.iter().copied().find(|fault| fault.name() == *name);
        known.ok_or_else(|| {
            let all = "`cargo amp selftest --list` prints all names";
            Error::config(format!("unknown fault `{name}`: {all}"))
        })
    };
    names.iter().map(parse).collect()
}

fn plan(
    registry: &Registry,
    args: &SelftestArgs,
    model: &Arc<Model>,
    changes: &Changes,
) -> Result<Plan> {
    let (first, most) = Tier::Quick.seeds();
    let length = changes.length.unwrap_or(model.quick());
    // If only rules are checked, no metric is compared with the margin, so any number serves as the
    // margin.
    let margin = args.rules.then_some(f64::MAX);
    Ok(Plan {
        registry: registry.clone(),
        models: vec![Subject::with(registry, model, changes, length, margin)?],
        changes: changes.clone(),
        time_limit: None,
        rules_only: false,
        tier: Tier::Quick,
        precisions: Tier::Quick.precisions().to_vec(),
        first,
        most,
        first_seed: 42,
        alpha: 0.05,
        equivalence: false,
        device: args.device.clone(),
        tf32: false,
        deterministic: false,
        kernels: Kernels::default(),
        check: Check::default(),
        goldens: None,
        overrides: Default::default(),
        diagnosed: 0,
        fault: None,
    })
}

/// The gate's jobs that check a fault against rules, in the order in which they run. After the
/// first job that reports the fault, no further job runs. If no job reports it, full training runs
/// follow.
const STAGES: [Task; 2] = [Task::Path, Task::Conformance];

/// What is known about one fault: the plan with which the gate judges it, the failures that the
/// gate's rules have found so far, the job that checks the training invariants, and the same model
/// without the fault.
type Case<'a> = (((&'a (Fault, Plan), Vec<Failure>), &'a Job), &'a mut Unchanged);

/// Runs the gate's checks for each fault. Returns the results, and the failures that were not counted
/// because the model fails in the same way without a fault. The rules of the training path are
/// checked first, and then the first steps. Full training runs follow only for faults that are not
/// reported by then. If `rules_only` is true, there are no full training runs.
fn results(
    plans: &[(Fault, Plan)],
    rules_only: bool,
    pool: &mut Pool,
) -> Result<(Vec<FaultResult>, Vec<String>)> {
    let mut unchanged: Vec<Unchanged> = plans.iter().map(|(_, plan)| Unchanged::of(plan)).collect();
    let mut seen: Vec<Vec<Failure>> = vec![Vec::new(); plans.len()];
    for task in STAGES {
        let open = plans.iter().zip(&unchanged).zip(&seen).filter(|(_, seen)| seen.is_empty());
        let jobs = open.flat_map(|(((_, plan), same), _)| [job(plan, task), same.job(task)]);
        pool.run(jobs.collect::<Vec<_>>())?;
        for (((_, plan), same), seen) in plans.iter().zip(&mut unchanged).zip(&mut seen) {
            if let Some(outcome) = pool.outcome(&job(plan, task)).filter(|_| seen.is_empty()) {
                *seen = same.without_own(&outcome.failures, pool.outcome(&same.job(task)));
            }
        }
    }
    let invariants: Vec<_> = plans.iter().map(|(_, plan)| job(plan, Task::Invariants)).collect();
    let same = unchanged.iter().map(|same| same.job(Task::Invariants));
    pool.run(invariants.iter().cloned().chain(same).collect::<Vec<_>>())?;
    let is_trained = |failures: &[Failure]| failures.is_empty() && !rules_only;
    let whole = plans.iter().zip(&unchanged).zip(&seen).filter(|(_, seen)| is_trained(seen));
    // The jobs of all faults are submitted together, so that no process must wait until the jobs of
    // one fault have ended.
    let jobs = whole.flat_map(|(((_, plan), same), _)| {
        plan.first_look().into_iter().chain(same.plan.first_look())
    });
    pool.run(jobs.collect::<Vec<_>>())?;
    let result = |((((fault, plan), mut failures), job), same): Case<'_>| {
        let (mut by_seeds, trained) = (false, is_trained(&failures));
        let mut reported = failures.first().map(|failure| failure.text.clone()).unwrap_or_default();
        if trained {
            let report = gate::run(plan, pool)?;
            let alike = gate::run(&same.plan, pool)?;
            let results = report.models.into_iter().flat_map(|model| model.results);
            let alike = alike.models.iter().flat_map(|model| &model.results);
            for (mut result, alike) in results.zip(alike) {
                by_seeds |= same.forget_own(&mut result, alike);
                reported = result.note();
                failures.extend(result.failures);
            }
        }
        // Of the failures of this job, only broken invariants count. Other jobs make all other
        // checks.
        let broken = pool.outcome(job).into_iter().flat_map(|outcome| &outcome.failures);
        let broken: Vec<Failure> =
            broken.filter(|failure| failure.reason == Reason::Invariant).cloned().collect();
        let broken = same.without_own(&broken, pool.outcome(&same.job(Task::Invariants)));
        if failures.is_empty()
            && let Some(first) = broken.first()
        {
            reported.clone_from(&first.text);
        }
        let invariants = broken.iter().filter_map(|failure| failure.invariant.clone()).collect();
        failures.extend(broken);
        let reported_by: BTreeSet<Reason> = failures.iter().map(|failure| failure.reason).collect();
        Ok(FaultResult {
            fault: *fault,
            area: fault.area(),
            model: plan.models[0].name().to_owned(),
            reported_by: reported_by.into_iter().collect(),
            invariants,
            by_seeds,
            trained,
            first_line: reported,
            finding: None,
        })
    };
    let cases = plans.iter().zip(seen).zip(&invariants).zip(&mut unchanged);
    let results = cases.map(result).collect::<Result<Vec<_>>>()?;
    let not_counted: BTreeSet<String> = unchanged.iter().flat_map(Unchanged::own).collect();
    Ok((results, not_counted.into_iter().collect()))
}

/// Returns the job of a stage in which the gate checks a plan with one model.
pub(super) fn job(plan: &Plan, task: Task) -> Job {
    plan.job(&plan.models[0], PRECISION, plan.first_seed, task)
}

#[cfg(test)]
mod tests {
    use amp_core::prelude::*;
    use clap::Parser;

    use super::*;
    use crate::{DataSet, gate::waves::waves, model, project};

    #[derive(LightningModule)]
    #[loss(mse_loss)]
    #[optimizer(sgd, lr = 0.01)]
    struct Line {
        #[layer(linear(4, 1))]
        head: Linear,
    }

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: SelftestArgs,
    }

    /// Tests the gate with one fault in a model that must improve by `learns_by`.
    fn tested(fault: &str, learns_by: f64) -> Result<Report> {
        let model = model!(Line).judged_by_loss().margin(1.0).batch_size(8).epochs(1);
        let registry = Registry::new(project!())
            .data_set(DataSet::new("waves", waves))
            .model(model.learns_by(learns_by));
        let line = ["selftest", "--model", "Line", "--repetitions", "0", "--processes", "1"];
        let args = Command::parse_from(line.into_iter().chain(["--fault", fault])).args;
        run(&registry, &args)
    }

    /// A fault without effect on this model is not reported, even if the model, with and without the
    /// fault, does not learn enough. The report names the failure that was not counted.
    #[test]
    fn a_failure_of_the_unchanged_model_is_no_detection() -> Result<()> {
        let report = tested("schedule_stuck", 1e6)?;
        let [result] = &report.faults[..] else { panic!("{:?}", report.faults) };
        assert!(result.trained && !result.is_reported(), "{result:?}");
        assert_eq!(report.reported(), 1, "only the golden that contains NaN");
        let [first, ..] = &report.not_counted[..] else { panic!("nothing was left out") };
        assert!(first.starts_with("Line: did_not_learn: 32-true's val_loss is "), "{first}");
        let table = report.table();
        assert!(table.contains("MISSED"), "{table}");
        assert!(
            table.contains(
                "not counted, because the model fails without a fault too: Line: did_not"
            ),
            "{table}"
        );
        assert!(table.contains("reported faults: 1 of 2 (50%)"), "{table}");
        Ok(())
    }

    /// A fault with an effect is reported by the rule that it breaks, also in a model that does not
    /// learn enough.
    #[test]
    fn a_fault_in_a_model_that_fails_is_reported_by_its_own_rule() -> Result<()> {
        let report = tested("learning_rate_doubled", 1e6)?;
        assert!(report.faults[0].is_reported(), "{:?}", report.faults);
        assert!(!report.faults[0].reported_by.contains(&Reason::DidNotLearn));
        assert_eq!(report.not_counted, [""; 0]);
        Ok(())
    }
}
