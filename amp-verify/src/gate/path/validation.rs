//! Checks validation. Two validations of the same weights must log the same bits and change no
//! tensor. The logged values must be those that the run itself logged. The validation loss must be
//! close to that of the same weights under 32-true.

use amp_core::{LightningModule, Result, Trainer, log::Logged, nn::named_tensors, random};

use super::{
    final_state::{FinalState, snapshot},
    reference::Reference,
    run::{Scenario, Setup},
    statistics_bound,
};
use crate::{
    gate::{
        checked::{Findings, Unit},
        reason::Reason,
    },
    registry::LOSS,
    scalars::all_equal,
};

/// Validates the trained model twice under the precision and once under 32-true. Compares the
/// results.
pub(super) fn check(
    setup: &Setup<'_>,
    findings: &mut Findings,
    state: &FinalState,
    mut model: Box<dyn LightningModule>,
    reference: Reference,
) -> Result<()> {
    let data = &setup.case.data;
    if data.val.is_empty() {
        findings.left_out(Reason::Validation, "there is no validation set");
        return Ok(());
    }
    let config = setup.config(Scenario::Epoch)?;
    let _section = random::seeded(setup.case.trainer.seed)?;
    let tensors = named_tensors(model.as_ref()).into_iter();
    let before = snapshot(tensors.map(|(name, tensor, _)| (name, tensor)).collect())?;
    let validate = |model: &mut dyn LightningModule| -> Result<Vec<Logged>> {
        Trainer::new(config.clone()).validate(model, data)
    };
    let first = validate(model.as_mut())?;
    let second = validate(model.as_mut())?;
    let mut wrong = None;
    let after = named_tensors(model.as_ref());
    let pairs = before.iter().zip(&after).map(|((_, was), (_, now, _))| (was, now));
    let is_still = all_equal(pairs)?;
    for (name, was) in before.iter().filter(|_| !is_still) {
        let now = after.iter().find(|(own, ..)| own == name);
        if let Some((_, now, _)) = now
            && !was.f_equal(&now.f_detach()?.f_to_device(was.device())?)?
        {
            wrong = Some(format!("validation changed `{name}`"));
            break;
        }
    }
    if let Some((name, a, b)) = difference(&first, |name| value(&second, name)) {
        wrong.get_or_insert_with(|| {
            format!(
                "`{name}` is {a} in the first validation and {b} in the second, of the same weights"
            )
        });
    }
    if let Some((name, a, b)) = difference(&first, |name| state.record.last(name)) {
        wrong.get_or_insert_with(|| {
            format!(
                "the run logged `{name}` as {b}, but validating its final weights again gives {a}"
            )
        });
    }
    let what = "two validations and the run log the same values; validation changes no tensor of \
        the model";
    let over = format!("evaluation mode, {} values", first.len());
    findings.equal(Reason::Validation, what, over, wrong);
    let own = value(&first, LOSS);
    let mut exact = reference.into_model(model.as_ref())?;
    let mut config = setup.config(Scenario::Epoch)?;
    config.precision = amp_core::precision::Precision::F32True;
    let exact = Trainer::new(config).validate(exact.as_mut(), data)?;
    if let (Some(own), Some(exact)) = (own, value(&exact, LOSS)) {
        findings.measured(
            Reason::NotConformant,
            "the validation loss, relative difference from 32-true's with the same weights",
            "evaluation mode, the validation set",
            Unit::Share,
            (((own - exact) / exact).abs(), 0.5 * statistics_bound(setup.precision)),
        );
    }
    Ok(())
}

fn value(logged: &[Logged], name: &str) -> Option<f64> {
    logged.iter().find(|logged| logged.name == name).map(|logged| logged.value)
}

/// Returns the first logged value that differs from the value with the same name in `other`.
/// Ignores names that `other` does not have.
fn difference(logged: &[Logged], other: impl Fn(&str) -> Option<f64>) -> Option<(&str, f64, f64)> {
    let both =
        logged.iter().filter_map(|own| Some((own.name.as_str(), own.value, other(&own.name)?)));
    both.into_iter().find(|(_, a, b)| a.to_bits() != b.to_bits())
}
