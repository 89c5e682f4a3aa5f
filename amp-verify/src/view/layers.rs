//! Formats the measured errors of the layers as a table.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

use super::significant;
use crate::{
    exponents::{Losses, Window},
    layers::{Flow, Group, Kind, Layer, Report},
    text::percent,
};

/// Formats the rounding errors of a model's layers: a line that describes the measurement, the
/// table of the layers, and lines with conclusions.
pub fn layers(report: &Report) -> String {
    let mut out = format!(
        "{} under {}, a batch of {}, seed {}, loss {} (64-true: {:.6}){}{}\n",
        report.model,
        report.precision,
        report.batch_size,
        report.seed,
        report.loss.map_or("not finite".into(), |loss| format!("{loss:.6}")),
        report.exact_loss,
        if report.precision.scales_loss() {
            format!(", loss scale 2^{}", report.log2_scale)
        } else {
            String::new()
        },
        if report.dropout { "" } else { ", dropout off" },
    );
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "layer",
        "dtype",
        "E output",
        "E input grad",
        "E weight grad",
        "local",
        "bias z",
        "overflow",
        "underflow",
        "safe scales",
        "margin",
    ]);
    for layer in &report.layers {
        table.add_row(row(layer));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    out += &format!("{table}\n");
    out += "E: error, divided by the error under 32-true; *: the layer with the largest own error; local: the layer's own \
            share of the squared error of its output; overflow, underflow: number of values, predicted / observed\n";
    if let Some(draws) = &report.draws {
        out += &format!("the errors also contain the effect of other random numbers: {draws}\n");
    }
    out += &groups(&report.groups);
    for kind in Kind::ALL {
        if let Some(layer) = report.worst(kind) {
            let size = layer.flow(kind).map_or(0.0, Flow::relative_local_error);
            let what = match kind {
                Kind::Forward => "output",
                Kind::InputGradient => "input gradient",
                Kind::WeightGradient => "weight gradient",
            };
            out += &format!("largest local error of the {what}: {} ({size:.2e})\n", layer.path);
        }
    }
    if let Some(growth) = report.growth {
        let t = growth.t.map_or(String::new(), |t| format!(", t = {t:.1}"));
        out += &format!("bias of outputs grows by {:+.1e} a layer{t}\n", growth.per_layer);
    }
    if let Some(common) = &report.window {
        out += &match common.conflict() {
            None => format!("safe loss scales: {}\n", window(common.window)),
            Some((more, less)) => format!(
                "no loss scale is safe: {more} needs at least 2^{}, {less} allows at most 2^{}\n",
                common.window.low, common.window.high
            ),
        };
    }
    out
}

/// Formats for each group of fused layers how far its results differ from the results of the same
/// layers run one at a time.
fn groups(groups: &[Group]) -> String {
    if groups.is_empty() {
        return "each layer was measured alone; fit fuses no layers on this device\n".to_owned();
    }
    let mut out =
        "each layer was measured alone; fit fuses these groups of layers, whose results differ \
         from those of the separate layers by:\n"
            .to_owned();
    for group in groups {
        let figure = |what: &str, figure: Option<f64>, bound: f64| {
            figure.map(|figure| format!("{what} {} (at most {})", percent(figure), percent(bound)))
        };
        let figures = [
            figure("output", group.forward, group.forward_bound),
            figure("input gradient", group.input_gradient, group.gradient_bound),
            figure("weight gradient", group.weight_gradient, group.gradient_bound),
        ];
        let figures: Vec<String> = figures.into_iter().flatten().collect();
        let verdict = if group.is_beyond { ": OVER ITS BOUND" } else { "" };
        out += &format!("  {}: {}{verdict}\n", group.name(), figures.join(", "));
    }
    out
}

fn row(layer: &Layer) -> Vec<String> {
    let dash = || "–".to_owned();
    let ratio = |kind: Kind| {
        let mark = if layer.worst.contains(&kind) { "*" } else { "" };
        let text = layer.flow(kind).map(|flow| match (flow.ratio, flow.error) {
            (Some(ratio), _) => significant(ratio),
            (None, None) => "not finite".into(),
            (None, Some(0.0)) => "exact".into(),
            (None, Some(_)) => dash(),
        });
        text.map_or_else(dash, |text| text + mark)
    };
    let flows = || Kind::ALL.into_iter().filter_map(|kind| layer.flow(kind));
    let lost = |of: fn(Losses) -> u64| {
        let predicted: Option<u64> = flows().map(|flow| flow.predicted.map(of)).sum();
        let observed: u64 = flows().map(|flow| of(flow.observed)).sum();
        format!("{} / {observed}", predicted.map_or_else(dash, |count| count.to_string()))
    };
    vec![
        layer.path.clone(),
        layer.dtype.replace("bfloat", "bf").replace("float", "f"),
        ratio(Kind::Forward),
        ratio(Kind::InputGradient),
        ratio(Kind::WeightGradient),
        layer.forward.local_share.map_or_else(dash, |share| format!("{:.0}%", 100.0 * share)),
        layer.forward.bias.map_or_else(dash, |bias| format!("{:+.1}", bias.z())),
        lost(|losses| losses.overflow),
        lost(|losses| losses.underflow),
        layer.window.map_or_else(dash, window),
        layer.margin_bits.map_or_else(dash, |bits| format!("{bits:+} bits")),
    ]
}

fn window(window: Window) -> String {
    match window.is_empty() {
        true => "none".into(),
        false => format!("2^{} … 2^{}", window.low, window.high),
    }
}
