//! Charts of one training step: exponents and errors of the layers.

use amp_core::{Result, precision::Precision};

use super::{
    chart::{self, Shown},
    color::{ChartColor, NORMAL, SUBNORMAL},
    page::{Section, escaped},
    table,
};
use crate::{
    case::Case,
    comparison::Comparison,
    exponents::{Format, Histogram},
    layers::{self, Kind, Options, Report},
};

/// Returns the unit roundoff of `dtype` divided by the unit roundoff of f32. The result is a power
/// of 2, and 1 for f32 itself.
fn unit(dtype: amp_core::tch::Kind) -> f64 {
    use amp_core::tch::Kind as Dtype;
    // f32 has 24 bits of precision, f16 11, bf16 8 and f64 53.
    let log2 = match dtype {
        Dtype::Half => 13,
        Dtype::BFloat16 => 16,
        Dtype::Double => -29,
        _ => 0,
    };
    2.0_f64.powi(log2)
}

/// Measures the layers in one step under each 16-bit precision of the comparison. If the comparison
/// has no 16-bit precision, measures the layers under 32-true. For 16-mixed, uses the loss scale
/// from the end of the 16-mixed run.
///
/// # Errors
/// When a step fails, or the model does not run the same layers under every precision.
pub fn measure_steps(case: &Case, comparison: &Comparison) -> Result<Vec<Report>> {
    let precisions = comparison.runs.iter().map(|run| run.precision);
    let mut measured: Vec<Precision> =
        precisions.filter(|precision| Format::of(precision.compute()).is_some()).collect();
    if measured.is_empty() {
        measured.push(Precision::F32True);
    }
    let scale = comparison.runs.iter().find_map(|run| run.final_scale);
    let scale = scale.unwrap_or(case.trainer.numerics.scaler.init_scale);
    let log2_scale = scale.log2().round() as i32;
    let measure =
        |precision| layers::measure_case(case, Options { log2_scale, ..Options::new(precision) });
    measured.into_iter().map(measure).collect()
}

/// Returns the name of a kind of tensors in the plural, for example `Input gradients`.
pub(super) fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Forward => "Outputs",
        Kind::InputGradient => "Input gradients",
        Kind::WeightGradient => "Weight gradients",
    }
}

pub(super) fn sections(steps: &Result<Vec<Report>>) -> Result<String> {
    let reports = match steps {
        Ok(reports) => reports,
        Err(error) => {
            let text = escaped(&error.to_string());
            return Ok(format!(
                "<section>\n<h2>The layers of one step</h2>\n<p>Not measured: {text}</p>\n</section>\n"
            ));
        }
    };
    let Some(first) = reports.first() else { return Ok(String::new()) };
    let log2_scale = reports.iter().map(|report| report.log2_scale).find(|scale| *scale != 0);
    let mut html = String::new();
    for kind in Kind::ALL {
        html += &exponents(first, kind, log2_scale.filter(|_| kind != Kind::Forward))?;
    }
    for report in reports {
        html += &errors(report)?;
    }
    Ok(html)
}

/// Draws the exponents of all layers' values under 32-true. Below the chart, a table shows what
/// fraction of these values would overflow, become subnormal or become zero in each format.
fn exponents(report: &Report, kind: Kind, log2_scale: Option<i32>) -> Result<String> {
    let mut all = Histogram::default();
    for flow in report.layers.iter().filter_map(|layer| layer.flow(kind)) {
        all.add(&flow.histogram);
    }
    if all.nonzero() == 0 {
        return Ok(String::new());
    }
    let title = format!("{} by exponent", plural(kind));
    let zeros = all.zeros as f64 / (all.zeros + all.nonzero() + all.non_finite).max(1) as f64;
    let text = format!(
        "The values of all layers under 32-true, in a step on the first batch with the initial \
         weights. A bar at 2ᵏ shows the fraction of values with magnitudes from 2ᵏ to 2ᵏ⁺¹. Zeros \
         ({:.1} %) are left out. Below: the exponents that each format can represent, and the \
         values that it would lose.",
        100.0 * zeros
    );
    let mut keys = vec![("values".to_owned(), ChartColor::series(2))];
    if let Some(scale) = log2_scale {
        keys.push((
            format!("times the loss scale at the end, {}", table::power(scale)),
            ChartColor::series(1),
        ));
    }
    keys.push(("normal range".to_owned(), NORMAL));
    keys.push(("subnormal range".to_owned(), SUBNORMAL));
    let drawn = chart::exponents(&Shown { histogram: &all, log2_scale })?;
    let below = table::losses(report, kind, &all, log2_scale);
    Ok(Section::new(&title, &text).keys(keys).below(&below).chart(drawn))
}

/// Draws the error of each layer (its difference from a 64-true step), divided by its error under
/// 32-true.
fn errors(report: &Report) -> Result<String> {
    let precision = report.precision;
    let unit = unit(precision.compute());
    let title = format!("Error of each layer under {precision}, divided by 32-true's");
    let times = if unit >= 1.0 { format!("{unit:.0}") } else { format!("{unit:.1e}") };
    let text = format!(
        "The root mean square error of each layer, divided by its error under 32-true, in a step \
         on the first batch with the initial weights{}. Errors are differences from a 64-true \
         step. Grey lines: 1 (as good as 32-true), and {times} (the ratio of the dtypes' unit \
         roundoffs). Red cross: not finite. No mark: 32-true is exact.",
        if report.dropout { "" } else { ", without dropout" }
    );
    let names = ["output (disc)", "input gradient (triangle)", "weight gradient (square)"];
    let keys =
        names.iter().enumerate().map(|(at, name)| ((*name).to_owned(), ChartColor::series(at + 1)));
    let drawn = chart::ratios(report, unit)?;
    let below = table::layers(report);
    Ok(Section::new(&title, &text).keys(keys).below(&below).chart(drawn))
}
