//! Checks that validation has no side effects: it gives the same bits twice, changes no tensor, and
//! agrees with the values of the run.

use amp_core::{LightningModule, Result, Trainer, log::Logged, nn::named_tensors, random};

use super::{
    final_state::{FinalState, on_host},
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
};

/// Validates the final state of the run twice.
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
    let before = tensors(model.as_ref())?;
    let validate = |model: &mut dyn LightningModule| -> Result<Vec<Logged>> {
        Trainer::new(config.clone()).validate(model, data)
    };
    let first = validate(model.as_mut())?;
    let second = validate(model.as_mut())?;
    let mut wrong = None;
    for (name, was) in &before {
        let now = named_tensors(model.as_ref()).into_iter().find(|(own, ..)| own == name);
        if let Some((_, now, _)) = now
            && !was.f_equal(&on_host(&now)?)?
        {
            wrong = Some(format!("validation moved `{name}`"));
            break;
        }
    }
    if let Some((name, a, b)) = difference(&first, |name| value(&second, name)) {
        wrong.get_or_insert_with(|| {
            format!("`{name}` is {a} at first and {b} in a second validation of the same weights")
        });
    }
    if let Some((name, a, b)) = difference(&first, |name| state.record.last(name)) {
        wrong.get_or_insert_with(|| {
            format!("`{name}` is {b} in the run, but {a} in a validation of its weights")
        });
    }
    let what = "logged values, in two validations and in the run; no tensor changes";
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
            "the validation loss, away from 32-true's with the same weights",
            "evaluation mode, the validation set",
            Unit::Share,
            (((own - exact) / exact).abs(), 0.5 * statistics_bound(setup.precision)),
        );
    }
    Ok(())
}

fn tensors(model: &dyn LightningModule) -> Result<Vec<(String, amp_core::tch::Tensor)>> {
    let all = named_tensors(model).into_iter();
    all.map(|(name, tensor, _)| Ok((name, on_host(&tensor)?))).collect()
}

fn value(logged: &[Logged], name: &str) -> Option<f64> {
    logged.iter().find(|logged| logged.name == name).map(|logged| logged.value)
}

/// Returns the first value that differs, among values that both have.
fn difference(logged: &[Logged], other: impl Fn(&str) -> Option<f64>) -> Option<(&str, f64, f64)> {
    let both =
        logged.iter().filter_map(|own| Some((own.name.as_str(), own.value, other(&own.name)?)));
    both.into_iter().find(|(_, a, b)| a.to_bits() != b.to_bits())
}
