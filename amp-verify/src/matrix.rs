//! Trains a case (a model with its data and options) under several precisions, the 32-true baseline
//! first.

use amp_core::{
    Error, Result, event::Subscriber, optim::Moments, precision::Precision, record::RunRecord,
};

use crate::{
    case::Case,
    comparison::{Comparison, FailedRun},
    runner::{self, Extras},
    text::one_line,
};

/// Trains `case` (a model with its data and options) once under the 32-true baseline and once under
/// each of `precisions`. Compares each run with the baseline. The baseline always stores its
/// optimizer state in f32, even if the case's options ask for bf16 or 8-bit.
///
/// # Errors
/// When a training run fails. The error names the run's precision.
///
/// # Examples
///
/// ```
/// use amp_core::{Result, event::Event, precision::Precision};
/// use amp_verify::{case::Case, matrix};
///
/// fn losses(case: &Case) -> Result<()> {
///     let comparison = matrix::run(case, &[Precision::Bf16Mixed], &mut |_: &Event| Ok(()))?;
///     for run in comparison.runs {
///         println!("{}: {:?}", run.precision, run.loss);
///     }
///     Ok(())
/// }
/// ```
pub fn run(
    case: &Case,
    precisions: &[Precision],
    subscriber: &mut dyn Subscriber,
) -> Result<Comparison> {
    let records = records(case, precisions, subscriber);
    let records =
        records.map(|(precision, record)| record.map_err(|error| named(error, case, precision)));
    let records = records.collect::<Result<Vec<_>>>()?;
    Ok(Comparison::new(records, case.model.judge, case.data.batch_size))
}

/// Trains `case` (a model with its data and options) with `seeds` consecutive seeds, from the
/// case's own seed on. With each seed, trains once under the baseline and once under each of
/// `precisions`. Compares each run with the baseline run that has the same seed. If a run under a
/// precision other than the baseline fails, the comparison has no results of this precision, but
/// the error, and further seeds are not trained under this precision.
///
/// # Errors
/// When a training run under the baseline fails, or when a run fails for a reason that does not
/// depend on its precision, for example because a log file cannot be written. The error names the
/// run's precision.
pub fn over_seeds(
    case: &Case,
    precisions: &[Precision],
    seeds: u64,
    subscriber: &mut dyn Subscriber,
) -> Result<Comparison> {
    let mut left = precisions.to_vec();
    let mut each = (0..seeds.max(1)).map(|index| {
        let mut case = case.clone();
        case.trainer.seed = case.trainer.seed.wrapping_add(index);
        let comparison = surviving(&case, &left, subscriber)?;
        left.retain(|precision| comparison.failed.iter().all(|run| run.precision != *precision));
        Ok(comparison)
    });
    let first = each.next().expect("at least one seed")?;
    let others = each.collect::<Result<Vec<_>>>()?;
    Ok(first.with_seeds(&others, case.model.judge.resolution(case.data.val.examples())))
}

/// Trains and compares as [`run`] does, but a run that fails because of its precision does not end
/// the comparison.
fn surviving(
    case: &Case,
    precisions: &[Precision],
    subscriber: &mut dyn Subscriber,
) -> Result<Comparison> {
    let (mut trained, mut failed) = (Vec::new(), Vec::new());
    for (precision, record) in records(case, precisions, subscriber) {
        match record {
            Ok(record) => trained.push(record),
            Err(error) if precision != Precision::F32True && depends_on_precision(&error) => {
                let reason = one_line(&error.to_string());
                failed.push(FailedRun { precision, seed: case.trainer.seed, reason });
            }
            Err(error) => return Err(named(error, case, precision)),
        }
    }
    let comparison = Comparison::new(trained, case.model.judge, case.data.batch_size);
    Ok(Comparison { failed, ..comparison })
}

/// Trains `case` under the baseline and then under each of `precisions`. Returns the record of each
/// run, or its error.
fn records(
    case: &Case,
    precisions: &[Precision],
    subscriber: &mut dyn Subscriber,
) -> impl Iterator<Item = (Precision, Result<RunRecord>)> {
    let mut baseline = case.clone();
    baseline.trainer.numerics.moments = Moments::Full;
    plan(precisions).into_iter().map(move |precision| {
        let case = if precision == Precision::F32True { &baseline } else { case };
        (precision, runner::run(case, precision, Extras::default(), subscriber))
    })
}

/// Adds the model and the precision to the error of a run.
pub(crate) fn named(error: Error, case: &Case, precision: Precision) -> Error {
    error.within(&format!("{} under {precision}", case.model.name))
}

/// Returns whether another precision may train without this error.
pub(crate) fn depends_on_precision(error: &Error) -> bool {
    match error {
        Error::In { source, .. } => depends_on_precision(source),
        Error::Torch(_)
        | Error::Precision(_)
        | Error::NonFinite(_)
        | Error::Invariant { .. }
        | Error::Scaler(_) => true,
        _ => false,
    }
}

/// Returns the precisions to run, without duplicates: first the baseline, then `precisions` in
/// their order.
pub fn plan(precisions: &[Precision]) -> Vec<Precision> {
    let mut plan = vec![Precision::F32True];
    for precision in precisions {
        if !plan.contains(precision) {
            plan.push(*precision);
        }
    }
    plan
}
