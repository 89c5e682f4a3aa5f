//! Compares the fused layers that `Trainer::fit` uses with the same layers run one at a time.

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

/// Compares the results of each group of layers that is fused in a training step with the results
/// of the same layers run one at a time.
pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings) -> Result<()> {
    let groups = setup.measured(|subject| groups(subject, setup.precision))?;
    let Some(worst) = groups.iter().max_by(|a, b| a.over_bound().total_cmp(&b.over_bound())) else {
        findings.left_out(Reason::Fusion, "this device fuses no layers");
        return Ok(());
    };
    // Names the first group whose difference exceeds its bound, because the differences of later
    // groups may follow from it.
    let named = groups.iter().find(|group| group.is_beyond).unwrap_or(worst);
    if named.is_beyond {
        let text = format!(
            "the fused layers {}: their results differ from those of the same layers run one at a \
             time by {} of the accepted difference",
            in_code(named),
            of_bound(named.over_bound())
        );
        findings.fail(Reason::Fusion, text);
    }
    findings.measured(
        Reason::Fusion,
        format!(
            "difference of results, divided by what rounding explains, largest in {}",
            in_code(worst)
        ),
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
