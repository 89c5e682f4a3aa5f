//! How each layer rounds: what it makes of its own rounded inputs, against float64 on the same inputs.
//! Rounding to nearest has a mean of zero; a layer that truncates has one of half its errors' size.

use std::rc::Rc;

use amp_core::{Result, tch::Kind};

use super::{checked::Findings, run::Setup};
use crate::{
    gate::reason::Reason,
    layers::{self, Options},
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
        findings.left_out(Reason::Rounding, "the precision has no 16-bit layers");
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
    let report = match layers::measure(&subject, Options::new(precision)) {
        Ok(report) => report,
        Err(error) => {
            findings.left_out(Reason::Rounding, &format!("its layers cannot be measured: {error}"));
            return Ok(());
        }
    };
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
    Ok(())
}
