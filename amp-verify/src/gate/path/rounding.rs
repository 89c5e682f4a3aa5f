//! Checks how each 16-bit layer rounds. The layer runs on rounded inputs, and its results are
//! compared with results in float64 on the same inputs. Rounding to nearest gives errors with mean
//! zero, truncation does not. How large the errors may be follows from the rounding of the
//! parameters and the results. If they are larger, the layer loses precision inside. If there are
//! none, the layer does not compute in 16 bits.

use amp_core::{Result, tch::Kind};

use super::run::Setup;
use crate::{
    exponents::CommonWindow,
    gate::{
        checked::{Findings, Unit},
        reason::Reason,
    },
    layers::{self, Options, Own, WITHIN},
};

/// The accepted mean of a layer's rounding errors, divided by their root mean square. Truncation
/// towards zero gives 0.87.
const MEAN: f64 = 0.4;
/// The mean of a layer's errors is judged only if it is further from zero than this number of
/// standard errors. A smaller mean may be chance.
const CHANCE: f64 = 6.0;

/// Measures the layers on the first training examples, and checks how they round.
pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings) -> Result<()> {
    let precision = setup.precision;
    if matches!(precision.compute(), Kind::Float | Kind::Double) {
        for rule in [Reason::Rounding, Reason::Width] {
            findings.left_out(rule, "the precision has no 16-bit layers");
        }
        return Ok(());
    }
    let audited = setup.measured(|subject| layers::audit(subject, Options::new(precision)));
    let (report, own) = match audited {
        Ok(audited) => audited,
        Err(error) => {
            for rule in [Reason::Rounding, Reason::Width] {
                findings.left_out(rule, &format!("the layers cannot be measured: {error}"));
            }
            return Ok(());
        }
    };
    mean(&report, findings);
    size(&own, findings);
    exponents(&report, &own, findings);
    width(&own, findings);
    Ok(())
}

/// Checks that the layers round to nearest: the mean of their rounding errors must be close to
/// zero.
fn mean(report: &layers::Report, findings: &mut Findings) {
    let (mut worst, mut layer) = (0.0, "");
    // Layers without weights are left out, because their errors may have a nonzero mean although
    // they round to nearest. Dropout, for example, multiplies all elements by one rounded constant,
    // so all products are too large or all too small.
    let weighed = report.layers.iter().filter(|layer| layer.weight_gradient.is_some());
    let count = weighed.clone().count();
    for own in weighed {
        let (Some(bias), Some(error)) = (own.forward.bias, own.forward.local_error) else {
            continue;
        };
        let mean = bias.magnitude.abs().max(bias.shift.abs()) / error;
        if bias.z().abs() > CHANCE && mean > worst {
            (worst, layer) = (mean, &own.path);
        }
    }
    let whose = if layer.is_empty() { String::new() } else { format!(", largest in `{layer}`") };
    findings.measured(
        Reason::Rounding,
        format!("mean of a layer's errors, divided by their root mean square{whose}"),
        &format!("the first examples, {count} layers with weights on inputs computed in float64"),
        Unit::Number,
        (worst, MEAN),
    );
}

/// Checks that no layer's own error exceeds the bound for rounding errors.
fn size(own: &[Own], findings: &mut Findings) {
    let errors = own.iter().filter_map(|own| Some((own.error?, own.path.as_str())));
    let Some((error, path)) = errors.max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
    findings.measured(
        Reason::Rounding,
        format!("a layer's own error, divided by what rounding explains, largest in `{path}`"),
        &format!("the first examples, {} layers on inputs computed in float64", own.len()),
        Unit::Number,
        (error, WITHIN),
    );
}

/// Checks that no layer turns more values that its dtype can represent into 0 or infinity than
/// rounding explains. Also records how far the loss scale could change before the gradients of some
/// layer under- or overflow.
fn exponents(report: &layers::Report, own: &[Own], findings: &mut Findings) {
    let worst = own.iter().max_by(|a, b| a.lost.over_bound().total_cmp(&b.lost.over_bound()));
    if let Some(Own { path, lost, .. }) = worst {
        let whose = if lost.found > 0 { format!(", most in `{path}`") } else { String::new() };
        findings.measured(
            Reason::Rounding,
            format!(
                "values that became 0 or infinite although the dtype can represent them{whose}"
            ),
            &format!("the first examples, {} layers on inputs computed in float64", own.len()),
            Unit::Number,
            (lost.found as f64, lost.bound as f64),
        );
    }
    if let Some(common) = report.window.as_ref().filter(|_| report.log2_scale > 0) {
        let CommonWindow { window, lowest, highest } = common;
        findings.measured(
            Reason::Scale,
            format!(
                "powers of 2 between the loss scale 2^{} and the nearer limit of the range that is safe for \
                 all layers, 2^{} (`{lowest}`) to 2^{} (`{highest}`)",
                report.log2_scale, window.low, window.high
            ),
            "the first examples, gradients of 32-true",
            Unit::Number,
            (f64::from(window.margin_bits(report.log2_scale)), f64::INFINITY),
        );
    }
}

/// Checks that the layers compute in 16 bits and round only once.
fn width(own: &[Own], findings: &mut Findings) {
    let mut wrong = None;
    // Only the first error is reported. Values come before gradients, because wrong values also
    // make gradients wrong.
    for kind in [layers::Kind::Forward, layers::Kind::InputGradient] {
        let what = if kind == layers::Kind::Forward { "values" } else { "gradients" };
        for Own { path, .. } in own.iter().filter(|own| own.wide.contains(&kind)) {
            wrong.get_or_insert_with(|| {
                format!(
                    "the {what} of `{path}` were computed with parameters that are not rounded to 16 \
                     bits: the layer only casts its results to 16 bits"
                )
            });
        }
        for Own { path, .. } in own.iter().filter(|own| own.twice.contains(&kind)) {
            wrong.get_or_insert_with(|| {
                format!(
                    "the {what} of `{path}` have only the 8 significant bits of bf16, although \
                     their dtype is f16: they were rounded to bf16 first"
                )
            });
        }
    }
    let over = format!("the first examples, {} layers on inputs computed in float64", own.len());
    findings.equal(
        Reason::Width,
        "to how many binary digits results and gradients are rounded",
        over,
        wrong,
    );
}
