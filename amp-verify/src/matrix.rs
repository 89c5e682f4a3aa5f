//! All precisions of a case, the baseline first.

use amp_core::{Result, event::Subscriber, precision::Precision};

use crate::{
    case::Case,
    comparison::Comparison,
    runner::{self, Extras},
};

/// Runs the case under the baseline and `precisions`, each once, and compares.
///
/// # Errors
/// When a run fails; the error says under which precision.
pub fn run(
    case: &Case,
    precisions: &[Precision],
    subscriber: &mut dyn Subscriber,
) -> Result<Comparison> {
    let records = plan(precisions)
        .into_iter()
        .map(|precision| {
            runner::run(case, precision, Extras::default(), subscriber)
                .map_err(|error| error.at(&format!("{} under {precision}", case.model.name)))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Comparison::new(records, case.model.metric, case.data.batch_size))
}

/// The precisions to run: the baseline, then the others in the order given, none twice.
pub fn plan(precisions: &[Precision]) -> Vec<Precision> {
    let mut plan = vec![Precision::F32True];
    for precision in precisions {
        if !plan.contains(precision) {
            plan.push(*precision);
        }
    }
    plan
}
