//! A few steps of a precision beside the same steps in 32-true: what accuracy forgives and a rule
//! does not. Without dropout and batch statistics, whose random numbers differ between dtypes on
//! a GPU, both begin with the same weights and see the same examples.

mod bounds;
mod figures;
mod steps;

pub use bounds::{Bounds, RISK};
pub use figures::Figures;

use amp_core::{Error, Result, precision::Precision};

use self::{
    figures::{compare, relative},
    steps::{Ran, Steps, Trace},
};
use super::job::{Failure, Job, Outcome, Reason};
use crate::{faults::Fault, registry::Registry};

/// Optimizer steps beside 32-true.
const STEPS: u64 = 6;
/// The scale of those steps: low, so that none is skipped.
const CALM: f64 = 1024.0;
/// The scale that overflows: f16 gradients above 65504/2³⁴ = 3.8e-6 are infinite.
const OVERFLOWING: f64 = 17_179_869_184.0;

/// Does the job.
pub(super) fn run(job: &Job, registry: &Registry) -> Result<Outcome> {
    let case = job.case(registry, Precision::F32True)?;
    let exact = Steps { job, case: &case, precision: Precision::F32True };
    let exact = exact.run(exact.config(STEPS, CALM), Trace::default(), None)?;
    let case = job.case(registry, job.precision)?;
    let steps = Steps { job, case: &case, precision: job.precision };
    let ran = steps.run(steps.config(STEPS, CALM), Trace::default(), None)?;
    let mut outcome = Outcome::failed(Failure::new(Reason::Crashed, ""));
    outcome.failures.clear();
    let mut figures = compare(&exact, &ran)?;
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
        failures.push(differs("the learning rates of the first steps"));
    }
    if !ran.finite {
        failures.push(Failure::new(Reason::NonFinite, "a weight is not finite after few steps"));
    }
    if job.precision.scales_loss() {
        figures.overflows = Some(overflow(&steps, &exact, failures)?);
    }
    resume(&steps, failures)?;
    outcome.conformance = Some(figures);
    Ok(outcome)
}

fn differs(what: &str) -> Failure {
    Failure::new(Reason::NotConformant, format!("{what} are not those of 32-true"))
}

/// Starts where the scale overflows: each such step must leave the weights alone and move no
/// schedule, and the scale must come down until steps are applied.
fn overflow(steps: &Steps<'_>, exact: &Ran, failures: &mut Vec<Failure>) -> Result<u64> {
    let ran = steps.run(steps.config(STEPS, OVERFLOWING), Trace::default(), None)?;
    let mut fail = |text: &str| failures.push(Failure::new(Reason::NotConformant, text));
    // With regions by path nothing may be left in f16.
    if ran.trace.skips == 0 && steps.job.islands.is_empty() {
        fail("no step was skipped although the scale overflows");
    }
    if ran.trace.moved_on_skip {
        fail("a skipped step moved the weights");
    }
    if ran.trace.rates != exact.trace.rates || ran.steps != STEPS {
        fail("skipped steps moved the schedule or counted as steps");
    }
    if !ran.finite {
        failures.push(Failure::new(Reason::NonFinite, "a weight is not finite after an overflow"));
    }
    Ok(ran.trace.skips)
}

/// Saves half way and goes on in a new model: weights and scale must be those of the run that was
/// not stopped.
fn resume(steps: &Steps<'_>, failures: &mut Vec<Failure>) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Error::io("a temporary folder", error))?;
    let path = folder.path().join("half.safetensors");
    let saving = Trace { save_at: Some((STEPS / 2, path.clone())), ..Trace::default() };
    let whole = steps.run(steps.config(STEPS, CALM), saving, None)?;
    let mut config = steps.config(STEPS, CALM);
    if Fault::loses_state(steps.job.fault) {
        config.max_steps = Some(STEPS - STEPS / 2);
    }
    let resumed = steps.run(config, Trace::default(), Some(&path))?;
    let distance = relative(&resumed.weights, &whole.weights, &whole.initial)?;
    // Sums on a GPU may go in another order.
    let bound = if steps.case.trainer.device.is_cuda() { 0.05 } else { 0.0 };
    if resumed.scale != whole.scale {
        let text = format!(
            "a resumed run ends at scale {:?}, one that was not stopped at {:?}",
            resumed.scale.unwrap_or(1.0),
            whole.scale.unwrap_or(1.0)
        );
        failures.push(Failure::new(Reason::NotConformant, text));
    }
    if distance > bound || distance.is_nan() {
        let text = format!(
            "a resumed run's weights are {distance:.2e} from those of one that was not stopped"
        );
        failures.push(Failure::new(Reason::NotConformant, text));
    }
    Ok(())
}
