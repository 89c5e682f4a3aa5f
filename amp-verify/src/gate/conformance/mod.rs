//! Compares a few steps of a precision with the same steps in 32-true. This reveals errors that
//! hardly affect the accuracy. Dropout and batch statistics are off, because their random numbers
//! differ between dtypes on a GPU. Both runs have the same weights and examples.

mod bounds;
pub(super) mod emulation;
mod figures;
mod locate;
mod steps;

use std::rc::Rc;

use amp_core::{Result, precision::Precision, random};

pub(super) use self::bounds::{OF_GRADIENT, OF_LOSS, tolerance_limit};
use self::{
    bounds::{Bounds, Least},
    emulation::{Emulation, Rounding},
    figures::{Figures, What, compare, of_constants},
    locate::locate,
    steps::{Ran, Steps},
};
use super::{
    checked::{Checked, Unit},
    job::{Job, Outcome},
    reason::{Failure, Reason},
    reset::ResetModel,
    stages::Stages,
};
use crate::{faults::Fault, registry::Registry, text::significant};

/// The number of compared optimizer steps.
const STEPS: u64 = 6;
/// The loss scale of these steps. It is low, so that no step is skipped.
const LOW_SCALE: f64 = 1024.0;
/// The number of runs with emulated rounding.
const RUNS: u64 = 32;

/// Runs the job with one model, which is reset before each run.
pub(super) fn run(job: &Job, registry: &Registry) -> Result<Outcome> {
    let case = job.case(registry, Precision::F32True)?;
    let _section = random::seeded(case.trainer.seed)?;
    let mut stages = Stages::new(job);
    let mut model = ResetModel::new(&case)?;
    stages.end("building the model");
    let exact = Steps { job, case: &case, precision: Precision::F32True };
    let exact = exact.run(&mut model, exact.config(STEPS, LOW_SCALE))?;
    stages.end("32-true");
    let case = job.case(registry, job.precision)?;
    let steps = Steps { job, case: &case, precision: job.precision };
    let mut config = steps.config(STEPS, LOW_SCALE);
    Fault::config(job.fault, &mut config);
    model.follow(&case)?;
    let ran = steps.run(&mut model, config)?;
    stages.end("the precision");
    let mut outcome = Outcome::failed(Failure::new(Reason::Crashed, ""));
    outcome.failures.clear();
    let (runs, least) = unchanged(job, registry, &mut model, &exact)?;
    stages.end("runs with emulated rounding");
    let (checked, mut texts) = judged(&compare(&exact, &ran)?, &Bounds::new(&runs, least));
    if let Some(first) = texts.first_mut() {
        *first += &locate(job, &case)?;
        stages.end("each layer alone");
    }
    let failures = &mut outcome.failures;
    failures.extend(texts.into_iter().map(|text| Failure::new(Reason::NotConformant, text)));
    if ran.trace.rates != exact.trace.rates {
        let text = "the learning rates of the first steps differ from those of 32-true";
        failures.push(Failure::new(Reason::Schedule, text));
    }
    if !ran.finite {
        failures
            .push(Failure::new(Reason::NonFinite, "a weight is not finite after the first steps"));
    }
    outcome.conformance = Some(checked);
    Ok(outcome)
}

/// Runs the job without its fault, several times with emulated rounding. Returns the figures of
/// each run and the lower limits of the bounds.
fn unchanged(
    job: &Job,
    registry: &Registry,
    model: &mut ResetModel,
    of_job: &Ran,
) -> Result<(Vec<Figures>, Least)> {
    // A fault that affects 32-true as well stays in these runs, because the precision does not
    // cause it.
    let fault = job.fault.filter(|fault| fault.touches_baseline());
    let is_unbroken = fault == job.fault;
    let job = &Job { fault, ..job.clone() };
    let case = job.case(registry, job.precision)?;
    model.follow(&case)?;
    let overrides = Rc::new(job.overrides.clone());
    let emulation = Rc::new(Emulation::of(&case, model.reset()?, job.precision, &overrides)?);
    let case = job.case(registry, emulation.wide)?;
    model.follow(&case)?;
    let steps = Steps { job, case: &case, precision: emulation.wide };
    let own;
    let exact = if is_unbroken && emulation.wide == Precision::F32True {
        of_job
    } else {
        own = steps.run_at_low_scale(model, None)?;
        &own
    };
    let runs = (1..=RUNS).map(|number| {
        let ran =
            steps.run_at_low_scale(model, Some(Rounding::new(&emulation, job.seed, number)))?;
        compare(exact, &ran)
    });
    let runs = runs.collect::<Result<_>>()?;
    Ok((runs, Least { loss: emulation.loss(), weights: of_constants(exact)? }))
}

/// Compares each figure with its bound; of all gradients, only the one furthest beyond its bound is
/// returned. Also returns a text for each figure that exceeds its bound.
fn judged(found: &Figures, bounds: &Bounds<'_>) -> (Vec<Checked>, Vec<String>) {
    let all: Vec<(&What, f64, f64)> =
        found.iter().map(|(what, figure)| (what, *figure, bounds.of(what))).collect();
    let (gradients, mut judged): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(what, ..)| matches!(what, What::Gradient(_)));
    // NaN exceeds every bound, and every figure exceeds a bound that is not finite.
    let is_beyond =
        |&(_, figure, bound): &(&What, f64, f64)| !(bound.is_finite() && figure.abs() <= bound);
    let beyond = gradients.iter().filter(|gradient| is_beyond(gradient)).count();
    let share = |&(_, figure, bound): &(&What, f64, f64)| match figure.is_nan() {
        true => f64::INFINITY,
        false => figure / bound,
    };
    judged.extend(gradients.into_iter().max_by(|a, b| share(a).total_cmp(&share(b))));
    let (mut checked, mut texts) = (Vec::new(), Vec::new());
    for entry in judged {
        let (what, figure, bound) = entry;
        if is_beyond(&entry) {
            let others = match what {
                What::Gradient(_) if beyond > 1 => format!(", and so are {} others", beyond - 1),
                _ => String::new(),
            };
            texts.push(format!(
                "{what} is {} from 32-true's, beyond {}{others}",
                significant(figure, 3),
                significant(bound, 2)
            ));
        }
        let bound = if bound.is_finite() { bound } else { f64::NAN };
        let what = what.to_string();
        let over = format!("{STEPS} steps without dropout and batch statistics");
        let figure = (figure.abs(), bound);
        checked.push(Checked::at_most(Reason::NotConformant, what, over, Unit::Share, figure));
    }
    (checked, texts)
}
