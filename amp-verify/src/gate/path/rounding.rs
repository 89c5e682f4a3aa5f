//! Checks how each layer rounds, compared with float64 on the layer's own rounded inputs. Rounding
//! to nearest gives errors with mean zero; truncation gives errors whose mean is half their size.
//! The rounding of parameters and results determines the expected size of the errors. A larger
//! error arises inside the layer. A missing error shows that the layer does not compute in 16 bits.

use amp_core::{Result, tch::Kind};

use super::run::Setup;
use crate::{
    gate::{
        checked::{Findings, Unit},
        reason::Reason,
        sample::sample,
    },
    layers::{self, Options, Own, WITHIN},
};

/// The accepted mean of a layer's rounding errors, divided by their root mean square. Truncation
/// towards zero gives 0.87.
const MEAN: f64 = 0.4;
/// If a mean has fewer standard errors, chance may explain it.
const CHANCE: f64 = 6.0;

/// Measures the layers with the first batch.
pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings) -> Result<()> {
    let precision = setup.precision;
    if matches!(precision.compute(), Kind::Float | Kind::Double) {
        for rule in [Reason::Rounding, Reason::Width] {
            findings.left_out(rule, "the precision has no 16-bit layers");
        }
        return Ok(());
    }
    let batch = sample(setup.case)?;
    let build = || setup.job.model(setup.case, precision);
    let (report, own) = match layers::audit(&setup.subject(&build, &batch), Options::new(precision))
    {
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
    width(&own, findings);
    Ok(())
}

/// Checks that the layers round to nearest.
fn mean(report: &layers::Report, findings: &mut Findings) {
    let (mut worst, mut layer) = (0.0, "");
    // Layers without weights are left out. They may multiply by a constant, as dropout does, and
    // the constant's rounding error has a nonzero mean.
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
    let whose = if layer.is_empty() { String::new() } else { format!(", most in `{layer}`") };
    findings.measured(
        Reason::Rounding,
        format!("mean of the errors over their root mean square{whose}"),
        &format!("the first examples, {count} layers with weights on exact inputs"),
        Unit::Number,
        (worst, MEAN),
    );
}

/// Checks that rounding explains the size of the layers' errors.
fn size(own: &[Own], findings: &mut Findings) {
    let errors = own.iter().filter_map(|own| Some((own.error?, own.path.as_str())));
    let Some((error, path)) = errors.max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
    findings.measured(
        Reason::Rounding,
        format!("own error over what rounding explains, most in `{path}`"),
        &format!("the first examples, {} layers on exact inputs", own.len()),
        Unit::Number,
        (error, WITHIN),
    );
}

/// Checks that the layers compute in 16 bits and round only once.
fn width(own: &[Own], findings: &mut Findings) {
    let mut wrong = None;
    // Values are checked before the gradients that follow from them.
    for kind in [layers::Kind::Forward, layers::Kind::InputGradient] {
        let what = if kind == layers::Kind::Forward { "values" } else { "gradients" };
        for Own { path, .. } in own.iter().filter(|own| own.wide.contains(&kind)) {
            wrong.get_or_insert_with(|| {
                format!(
                    "`{path}` has the {what} of parameters that are not rounded: it does not compute in 16 \
                     bits, but casts to them"
                )
            });
        }
        for Own { path, .. } in own.iter().filter(|own| own.twice.contains(&kind)) {
            wrong.get_or_insert_with(|| {
                format!(
                    "`{path}` has {what} in f16 with the 8 digits of bf16: they were rounded before"
                )
            });
        }
    }
    let over = format!("the first examples, {} layers on exact inputs", own.len());
    findings.equal(Reason::Width, "digits of results and gradients", over, wrong);
}
