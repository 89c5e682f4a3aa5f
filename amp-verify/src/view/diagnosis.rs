//! Formats the diagnosis of a failed check, with the lines that the user pastes into the model's
//! struct.

use crate::{
    diagnose::{Attribution, Diagnosis, Outcome, attribute_to_paste},
    text::of_bound,
};

/// Formats the diagnosis of a failed check.
pub fn diagnosis(diagnosis: &Diagnosis) -> String {
    let Diagnosis { check, attribution, before, fix, .. } = diagnosis;
    let mut out = format!("{check}: {}\n", outcome(*before));
    out += &match attribution {
        Attribution::Passes => "The check passes, so there is no cause to find.\n".into(),
        Attribution::Determinism { again } => format!(
            "determinism: repeated with the same seeds, the check gives another result ({}); use \
             --deterministic, or more seeds\n",
            outcome(*again)
        ),
        Attribution::Environment => {
            "environment: 32-true itself differs from the reference file\n".into()
        }
        Attribution::Precision => {
            "precision: repeated, the check fails again; under 32-true it passes\n".into()
        }
        Attribution::Fusion { groups } => {
            let each = groups.iter().map(|group| {
                format!(
                    "fusion: the fused layers {}: their results differ from those of the separate \
                     layers by {} of the bound; look at the fused kernel, because FP32 layers \
                     cannot repair it\n",
                    group.name(),
                    of_bound(group.over_bound())
                )
            });
            each.collect()
        }
    };
    let Some(fix) = fix else {
        if *attribution == Attribution::Precision {
            out += "FP32 in every module does not help: look at the loss, the loss scale and the \
                    optimizer\n";
        }
        return out;
    };
    let minimal = if fix.is_one_minimal { "each is needed" } else { "not minimal" };
    out += &format!(
        "must stay in FP32 ({minimal}; {} sets of modules tried): {}\nwith these in FP32: {}\n",
        fix.tests,
        fix.modules.join(", "),
        outcome(fix.after)
    );
    if let Some(cost) = fix.cost {
        out += &format!(
            "cost: time ×{:.2}, peak memory ×{:.2}\n",
            cost.train_seconds_ratio, cost.peak_memory_ratio
        );
    }
    if !fix.fields.is_empty() {
        out += &format!("\n{}\n", attribute_to_paste(&fix.fields));
    }
    let whole = fix.fields == fix.modules;
    if !whole {
        out += &format!(
            "\nThe attribute puts the whole field into FP32 ({}); --fix FILE writes a policy for only \
             these modules.\n",
            outcome(fix.with_fields)
        );
    }
    out
}

fn outcome(outcome: Outcome) -> String {
    let verdict = if outcome.passes() { "passes" } else { "FAILS" };
    match outcome.figure {
        Some(figure) => format!("{}, limit {}: {verdict}", number(figure), outcome.limit),
        None => format!("not finite: {verdict}"),
    }
}

/// Formats a number with four significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v < 0.01 => format!("{value:.3e}"),
        _ => format!("{value:.4}"),
    }
}
