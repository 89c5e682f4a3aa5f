//! How each layer rounds: what it makes of its own rounded inputs, against float64 on the same inputs.
//! Rounding to nearest has a mean of zero; a layer that truncates has one of half its errors' size. The error
//! itself has the size that rounding of parameters and results gives it: one that is larger is made within
//! the layer; where there is none, the layer does not compute in 16 bits.

use std::rc::Rc;

use amp_core::{Result, tch::Kind};

use super::{checked::Findings, run::Setup};
use crate::{
    gate::reason::Reason,
    layers::{self, Options, Own, WITHIN},
};

/// The most that the mean of a layer's rounding errors may be, in multiples of their root mean square.
/// Truncation towards zero has 0.87.
const MEAN: f64 = 0.4;
/// Below so many standard errors a mean is chance.
const CHANCE: f64 = 6.0;

/// Measures the layers of the first batch.
pub(super) fn check(setup: &Setup<'_>, findings: &mut Findings) -> Result<()> {
    let precision = setup.precision;
    if matches!(precision.compute(), Kind::Float | Kind::Double) {
        for rule in [Reason::Rounding, Reason::Width] {
            findings.left_out(rule, "the precision has no 16-bit layers");
        }
        return Ok(());
    }
    let build = || setup.job.model(setup.case, precision);
    let batch = setup.case.data.train.head(setup.case.data.batch_size)?;
    let subject = layers::Subject {
        build: &build,
        batch: &batch,
        device: setup.case.trainer.device,
        seed: setup.case.trainer.seed,
        islands: Rc::new(setup.job.islands.clone()),
    };
    let (report, own) = match layers::audit(&subject, Options::new(precision)) {
        Ok(audited) => audited,
        Err(error) => {
            for rule in [Reason::Rounding, Reason::Width] {
                findings.left_out(rule, &format!("its layers cannot be measured: {error}"));
            }
            return Ok(());
        }
    };
    mean(&report, findings);
    size(&own, findings);
    width(&own, findings);
    Ok(())
}

/// Whether the layers round to nearest.
fn mean(report: &layers::Report, findings: &mut Findings) {
    let (mut worst, mut layer) = (0.0, "");
    // A layer without weights may multiply by a constant, as dropout does, whose own rounding has a
    // mean.
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
        format!("mean rounding of {count} layers with weights over its size{whose}"),
        worst,
        MEAN,
    );
}

/// Whether the layers round no more than they must.
fn size(own: &[Own], findings: &mut Findings) {
    let errors = own.iter().filter_map(|own| Some((own.error?, own.path.as_str())));
    let Some((error, path)) = errors.max_by(|a, b| a.0.total_cmp(&b.0)) else { return };
    findings.measured(
        Reason::Rounding,
        format!(
            "own error of {} layers over what rounding of parameters and results makes, most in `{path}`",
            own.len()
        ),
        error,
        WITHIN,
    );
}

/// Whether the layers compute in 16 bits, and round to these at once.
fn width(own: &[Own], findings: &mut Findings) {
    // Values come before the gradients that follow from them.
    for kind in [layers::Kind::Forward, layers::Kind::InputGradient] {
        let what = if kind == layers::Kind::Forward { "values" } else { "gradients" };
        for Own { path, .. } in own.iter().filter(|own| own.wide.contains(&kind)) {
            findings.fail(
                Reason::Width,
                format!(
                    "`{path}` has the {what} of parameters that are not rounded: it does not compute in 16 \
                     bits, but casts to them"
                ),
            );
        }
        for Own { path, .. } in own.iter().filter(|own| own.twice.contains(&kind)) {
            findings.fail(
                Reason::Width,
                format!(
                    "`{path}` has {what} in f16 with the 8 digits of bf16: they were rounded before"
                ),
            );
        }
    }
    findings.held(Reason::Width, format!("results and gradients of {} layers", own.len()));
}
