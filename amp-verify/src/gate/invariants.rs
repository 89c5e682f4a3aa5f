//! A short run in which the invariants of training are checked in every step. The run includes
//! validations. If the precision scales its loss, the run also includes steps that overflow.

use amp_core::{Result, Trainer, data::Limit, random};

use super::{
    job::Job,
    outcome::Outcome,
    reason::{Failure, Reason},
};
use crate::{faults::Fault, registry::Registry};

/// The number of applied steps in the run. It is more than ten, because one invariant says that
/// each weight changes within ten steps.
const STEPS: u64 = 12;
/// The number of steps between two validations.
const BETWEEN: i64 = 6;
/// The largest number of epochs. If every step is skipped, the run ends after this number of
/// epochs.
const EPOCHS: i64 = 8;
/// A loss scale that is so high that the first steps overflow.
const SCALE: f64 = 17_179_869_184.0;

/// Runs the gate's job that checks the invariants of training.
pub(super) fn run(job: &Job, registry: &Registry) -> Result<Outcome> {
    let case = job.case(registry, job.precision)?;
    let mut config = job.config(&case, job.precision);
    config.max_epochs = EPOCHS;
    config.max_steps = Some(STEPS);
    config.numerics.scaler.init_scale = SCALE;
    config.numerics.scaler.growth_interval = 4;
    let loader = case.data.train_loader(config.policy(), 0)?;
    let most = BETWEEN * config.optimization.accumulate_grad_batches;
    if loader.batches() > most {
        config.loops.limit_train_batches = Limit::Batches(most);
    }
    Fault::config(job.fault, &mut config);
    let _section = random::seeded(case.trainer.seed)?;
    let mut model = job.model(&case, job.precision)?;
    let mut outcome = Outcome::failed(Failure::new(Reason::Crashed, ""));
    outcome.failures.clear();
    let record = Trainer::new(config).fit(model.as_mut(), &case.data)?;
    outcome.applied_steps = record.end.global_step;
    outcome.skipped_steps = record.end.skipped;
    Ok(outcome)
}
