//! A few steps of a precision beside the same steps in 32-true: what accuracy forgives and a rule
//! does not. Without dropout and batch statistics, whose random numbers differ between dtypes on
//! a GPU, both begin with the same weights and see the same examples.

mod bounds;
mod figures;
mod steps;

pub use bounds::{Bounds, RISK};
pub use figures::Figures;

use amp_core::{Result, precision::Precision};

use self::{figures::compare, steps::Steps};
use super::{
    job::{Job, Outcome},
    reason::{Failure, Reason},
};
use crate::{faults::Fault, registry::Registry};

/// Optimizer steps beside 32-true.
const STEPS: u64 = 6;
/// The scale of those steps: low, so that none is skipped.
const CALM: f64 = 1024.0;

/// Does the job.
pub(super) fn run(job: &Job, registry: &Registry) -> Result<Outcome> {
    let case = job.case(registry, Precision::F32True)?;
    let exact = Steps { job, case: &case, precision: Precision::F32True };
    let exact = exact.run(exact.config(STEPS, CALM))?;
    let case = job.case(registry, job.precision)?;
    let steps = Steps { job, case: &case, precision: job.precision };
    let mut config = steps.config(STEPS, CALM);
    Fault::config(job.fault, &mut config);
    let ran = steps.run(config)?;
    let mut outcome = Outcome::failed(Failure::new(Reason::Crashed, ""));
    outcome.failures.clear();
    let figures = compare(&exact, &ran)?;
    let model = registry.find(Some(&job.model))?;
    match Bounds::of(&registry.margins()?, model, job.precision, case.trainer.device) {
        Ok(bounds) => outcome.failures.extend(bounds.exceeded(&figures)),
        // The figures are what a recording needs.
        Err(error) => {
            outcome.failures.push(Failure::new(Reason::NotConformant, error.to_string()));
        }
    }
    let failures = &mut outcome.failures;
    if ran.trace.rates != exact.trace.rates {
        let text = "the learning rates of the first steps are not those of 32-true";
        failures.push(Failure::new(Reason::Schedule, text));
    }
    if !ran.finite {
        failures.push(Failure::new(Reason::NonFinite, "a weight is not finite after few steps"));
    }
    outcome.conformance = Some(figures);
    Ok(outcome)
}
