//! Trains a case (a model with its data and options) under several precisions, the 32-true baseline
//! first.

use amp_core::{Result, event::Subscriber, optim::Moments, precision::Precision};

use crate::{
    case::Case,
    comparison::Comparison,
    runner::{self, Extras},
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
    let mut baseline = case.clone();
    baseline.trainer.numerics.moments = Moments::Full;
    let records = plan(precisions)
        .into_iter()
        .map(|precision| {
            let case = if precision == Precision::F32True { &baseline } else { case };
            runner::run(case, precision, Extras::default(), subscriber)
                .map_err(|error| error.within(&format!("{} under {precision}", case.model.name)))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Comparison::new(records, case.model.judge, case.data.batch_size))
}

/// Trains `case` (a model with its data and options) with `seeds` consecutive seeds, from the
/// case's own seed on. With each seed, trains once under the baseline and once under each of
/// `precisions`. Compares each run with the baseline run that has the same seed.
///
/// # Errors
/// When a training run fails. The error names the run's precision.
pub fn over_seeds(
    case: &Case,
    precisions: &[Precision],
    seeds: u64,
    subscriber: &mut dyn Subscriber,
) -> Result<Comparison> {
    let first = run(case, precisions, subscriber)?;
    let others = (1..seeds).map(|index| {
        let mut case = case.clone();
        case.trainer.seed = case.trainer.seed.wrapping_add(index);
        run(&case, precisions, subscriber)
    });
    let others = others.collect::<Result<Vec<_>>>()?;
    Ok(first.with_seeds(&others, case.model.judge.resolution(case.data.val.examples())))
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
