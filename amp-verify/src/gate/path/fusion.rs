//! Layers that run in one, as `fit` runs them, against the same layers one by one.

use amp_core::Result;

use super::run::Setup;
use crate::{
    gate::{
        checked::{Findings, Unit},
        reason::Reason,
    },
    layers::{Group, groups},
    text::of_bound,
};

/// Holds each group of the first examples's step against its layers.
pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings) -> Result<()> {
    let batch = setup.budget.sample(setup.case)?;
    let build = || setup.job.model(setup.case, setup.precision);
    let groups = groups(&setup.subject(&build, &batch), setup.precision)?;
    let Some(worst) = groups.iter().max_by(|a, b| a.over_bound().total_cmp(&b.over_bound())) else {
        findings.left_out(Reason::Fusion, "no layers run in one on this device");
        return Ok(());
    };
    // The first beyond its bound: what follows it is given what it made.
    let named = groups.iter().find(|group| group.is_beyond).unwrap_or(worst);
    if named.is_beyond {
        let text = format!(
            "{} in one is {} of its bound away from the same layers one by one",
            in_code(named),
            of_bound(named.over_bound())
        );
        findings.fail(Reason::Fusion, text);
    }
    findings.measured(
        Reason::Fusion,
        format!("outputs and gradients over what rounding explains, most in {}", in_code(worst)),
        &format!("the first examples, {} groups on equal inputs, without dropout", groups.len()),
        Unit::Number,
        (worst.over_bound(), 1.0),
    );
    Ok(())
}

fn in_code(group: &Group) -> String {
    let members: Vec<String> = group.members.iter().map(|member| format!("`{member}`")).collect();
    members.join(" with ")
}
