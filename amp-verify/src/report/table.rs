//! The tables of the HTML page with the comparison.

use super::{
    chart::{short, superscript},
    page::escaped,
};
use crate::{
    comparison::{Comparison, Run, Sample},
    exponents::{Format, Histogram},
    layers::{Kind, Report},
    registry::LOSS,
    view::failure,
};

fn row(head: &str, cells: impl IntoIterator<Item = String>) -> String {
    let cells: String =
        cells.into_iter().map(|cell| format!("<td>{}</td>", escaped(&cell))).collect();
    format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escaped(head))
}

fn table(heads: &[&str], rows: &str) -> String {
    let heads: String =
        heads.iter().map(|head| format!("<th scope=\"col\">{}</th>", escaped(head))).collect();
    // If a table is wider than the page, the table scrolls, and the rest of the page does not.
    format!(
        "<div class=\"wide\"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n\
         </table></div>\n"
    )
}

/// Formats the table of all runs, and a list of notes below the table.
pub(super) fn comparison(comparison: &Comparison) -> String {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
    };
    let several = comparison.seeds.len() > 1;
    let is_share = comparison.direction.is_share();
    let (times, digits) = if is_share { (100.0, 2) } else { (1.0, 4) };
    let over = |sample: &Sample, digits: usize, times: f64| {
        sample.interval.map_or(("–".to_owned(), false), |interval| {
            let (mean, half) = (times * interval.mean, times * interval.half_width);
            (format!("{mean:.digits$} ± {half:.digits$}"), mean >= 0.0)
        })
    };
    let signed =
        |(text, positive): (String, bool)| if positive { format!("+{text}") } else { text };
    let cells = |run: &Run| {
        let delta = run.delta.as_ref();
        let points = delta.and_then(|delta| delta.accuracy);
        let (metric, difference, loss, applied, skipped) = match &run.over_seeds {
            Some(all) => (
                over(&all.accuracy, digits, times).0,
                all.accuracy_delta
                    .as_ref()
                    .map(|d| signed(over(d, digits, times)))
                    .unwrap_or_default(),
                over(&all.loss, 4, 1.0).0,
                all.applied_steps,
                all.skipped_steps,
            ),
            None => (
                number(run.accuracy.map(|value| times * value), digits),
                points.map_or(String::new(), |points| format!("{:+.digits$}", times * points)),
                number(run.loss, 4),
                run.applied_steps,
                run.skipped_steps,
            ),
        };
        [
            metric,
            difference,
            loss,
            format!("{skipped} of {}", applied + skipped),
            number(run.final_scale, 0),
            format!("{:.2}", run.peak_memory_bytes as f64 / f64::from(1 << 20)),
            delta.map_or(String::new(), |delta| format!("{:.2}", delta.peak_memory_ratio)),
            format!("{:.2}", run.train_seconds),
        ]
    };
    // If the model is judged by its loss, leaves out the two columns of the metric, because the
    // loss has its own columns.
    let skipped = if comparison.metric == LOSS { 2 } else { 0 };
    let line = |run: &Run| row(run.precision.name(), cells(run).into_iter().skip(skipped));
    let of_failed = comparison.failed.iter().map(|run| {
        row(
            run.precision.name(),
            ["failed".to_owned()].into_iter().chain(vec![String::new(); 7 - skipped]),
        )
    });
    let rows: String = comparison.runs.iter().map(line).chain(of_failed).collect();
    let (metric, difference) = match is_share {
        true => (format!("{}, %", comparison.metric), "Δ points"),
        false => (comparison.metric.clone(), "Δ"),
    };
    let metric = [metric.as_str(), difference].into_iter().skip(skipped);
    let costs = ["val_loss", "skipped", "scale", "MiB", "×", "seconds"];
    let heads: Vec<&str> = std::iter::once("precision").chain(metric).chain(costs).collect();
    let mut items = Vec::new();
    if let ([first, .., last], true) = (comparison.seeds.as_slice(), several) {
        items.push(format!(
            "means over seeds {first} to {last} ± half of their 95 % intervals; Δ: mean of the differences \
             from 32-true with the same seed; scale, memory and seconds: of seed {first}"
        ));
    }
    for run in &comparison.runs {
        let cause = run.first_cause.iter();
        items.extend(cause.map(|cause| format!("{}: first skipped step: {cause}", run.precision)));
    }
    items.extend(comparison.notes());
    items.extend(comparison.failed.iter().map(failure));
    let items: String = items.iter().map(|item| format!("<li>{}</li>\n", escaped(item))).collect();
    let list = if items.is_empty() { items } else { format!("<ul>\n{items}</ul>\n") };
    table(&heads, &rows) + &list
}

/// Formats the fraction `count`/`all` as a percentage with about two significant digits. Zero is
/// formatted as `0`, and less than 0.01 % as `<0.01 %`.
pub(super) fn share(count: u64, all: u64) -> String {
    let percent = 100.0 * count as f64 / all.max(1) as f64;
    match percent {
        _ if count == 0 => "0".into(),
        p if p >= 9.95 => format!("{p:.0} %"),
        p if p >= 0.095 => format!("{p:.1} %"),
        p if p >= 0.0095 => format!("{p:.2} %"),
        _ => "<0.01 %".into(),
    }
}

/// Formats a table of the fractions of values that would overflow, become subnormal or become zero
/// in each floating-point format. Each format has one row for the values themselves and, with a
/// `log2_scale`, one row for the values times the loss scale.
pub(super) fn losses(
    report: &Report,
    kind: Kind,
    all: &Histogram,
    log2_scale: Option<i32>,
) -> String {
    let nonzero = all.nonzero();
    let rows = |shift: i32, times: &str| -> String {
        Format::ALL
            .into_iter()
            .map(|format| {
                let lost = all.predict(format, shift);
                let kept = all.subnormal(format, shift);
                let cells = [lost.overflow, kept, lost.underflow];
                row(&format!("{}{times}", short(format)), cells.map(|count| share(count, nonzero)))
            })
            .collect()
    };
    let scaled = |scale: i32| rows(scale, &format!(", × {}", power(scale)));
    let rows = rows(0, "") + &log2_scale.map_or(String::new(), scaled);
    table(&["format", "overflow", "subnormal", "to zero"], &rows)
        + &worst(report, kind, log2_scale.unwrap_or(0))
}

/// Formats 2 to the power of `exponent`, with the exponent as superscript.
pub(super) fn power(exponent: i32) -> String {
    format!("2{}", superscript(f64::from(exponent)))
}

/// Returns a note on a cast of all values to f16, after a multiplication by 2^`log2_scale`. The
/// note names the layer with the largest fraction of values that would overflow, and the layer with
/// the largest fraction that would become zero.
fn worst(report: &Report, kind: Kind, log2_scale: i32) -> String {
    let flows =
        report.layers.iter().filter_map(|layer| Some((layer.path.as_str(), layer.flow(kind)?)));
    let lost = |of: fn(&Histogram, i32) -> u64| {
        let shares = flows.clone().map(|(path, flow)| {
            let (count, all) = (of(&flow.histogram, log2_scale), flow.histogram.nonzero());
            (path, count, all)
        });
        shares
            .filter(|(_, count, _)| *count > 0)
            .max_by(|a, b| (a.1 as f64 / a.2 as f64).total_cmp(&(b.1 as f64 / b.2 as f64)))
            .map(|(path, count, all)| {
                format!("{} ({})", escaped(path), escaped(&share(count, all)))
            })
    };
    let over = lost(|histogram, scale| histogram.predict(Format::F16, scale).overflow);
    let under = lost(|histogram, scale| histogram.predict(Format::F16, scale).underflow);
    let none = || "none".to_owned();
    format!(
        "<p class=\"note\">In f16{}, the layer with the most overflowing values: {}; with the \
         most values that become zero: {}.</p>\n",
        if log2_scale == 0 {
            String::new()
        } else {
            format!(" at the loss scale {}", power(log2_scale))
        },
        over.unwrap_or_else(none),
        under.unwrap_or_else(none)
    )
}

/// Formats the table of the layers' errors. The table is hidden until the reader clicks on its
/// title.
pub(super) fn layers(report: &Report) -> String {
    let rows: String = report
        .layers
        .iter()
        .map(|layer| {
            let ratios = Kind::ALL.map(|kind| match layer.flow(kind) {
                None => String::new(),
                Some(flow) => match (flow.ratio, flow.error) {
                    (Some(ratio), _) => format!("{ratio:.3e}"),
                    (None, None) => "not finite".into(),
                    (None, Some(0.0)) => "exact".into(),
                    (None, Some(_)) => "–".into(),
                },
            });
            let flows = || Kind::ALL.into_iter().filter_map(|kind| layer.flow(kind));
            let predicted = |of: fn(crate::exponents::Losses) -> u64| {
                let all: Option<u64> = flows().map(|flow| flow.predicted.map(of)).sum();
                all.map_or("–".to_owned(), |count| count.to_string())
            };
            let observed = |of: fn(crate::exponents::Losses) -> u64| {
                flows().map(|flow| of(flow.observed)).sum::<u64>().to_string()
            };
            let cells = ratios.into_iter().chain([
                layer.dtype.replace("bfloat", "bf").replace("float", "f"),
                format!("{} / {}", predicted(|l| l.overflow), observed(|l| l.overflow)),
                format!("{} / {}", predicted(|l| l.underflow), observed(|l| l.underflow)),
            ]);
            row(&layer.path, cells)
        })
        .collect();
    let heads = [
        "layer",
        "output",
        "input gradient",
        "weight gradient",
        "dtype",
        "overflow, predicted / observed",
        "to zero, predicted / observed",
    ];
    format!("<details>\n<summary>Error table</summary>\n{}</details>\n", table(&heads, &rows))
}
