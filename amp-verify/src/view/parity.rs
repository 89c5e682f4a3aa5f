//! Formats the comparison of models with their PyTorch versions.

use amp_core::memory::show_bytes;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

use crate::parity::{Pair, Report, Row, Seed, Status};

/// Formats the table of the models, an explanation of the columns, and the reasons why a model and
/// its PyTorch version disagree.
pub fn parity(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "model",
        "precision",
        "first losses apart",
        "metric",
        "Rust",
        "PyTorch",
        "skips",
        "memory",
        "lines",
        "",
    ]);
    for row in &report.rows {
        table.add_row(cells(row));
    }
    for column in table.column_iter_mut().skip(2).take(7) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let versions: Vec<String> =
        report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let mut out = format!("{table}\n");
    out += &format!(
        "PyTorch versions trained with {}; A / B: the Rust model's value / PyTorch's; first losses apart: the \
         largest relative difference between the losses of a batch, then under 32-true the \
         largest difference as a fraction of its bound, and how many of the losses have a bound \
         of at most 0.1 %; memory: the peak of tensor bytes; lines: lines of code of the model \
         alone\n",
        versions.join(", ")
    );
    for row in &report.rows {
        for failure in &row.failures {
            out += &format!("{} under {}: {failure}\n", row.model, row.precision);
        }
        for note in &row.notes {
            out += &format!("{} under {}, rounding: {note}\n", row.model, row.precision);
        }
        if row.status == Status::Inconclusive {
            out += &format!(
                "{} under {}: too few seeds to decide: run more with --seeds\n",
                row.model, row.precision
            );
        }
    }
    out
}

fn cells(row: &Row) -> [String; 10] {
    let dash = || "–".to_owned();
    let first = row.first.as_ref().map_or_else(dash, |first| {
        let largest =
            first.largest.map_or_else(|| "not finite".to_owned(), |off| format!("{off:.1e}"));
        let count = first.losses.ours.len();
        match (first.bound, first.told) {
            (Some((off, most)), Some(told)) => {
                format!("{largest}, {:.0}%, {told} of {count}", 100.0 * off / most)
            }
            _ => largest,
        }
    });
    let mean = |of: fn(&Pair<Option<f64>>) -> Option<f64>| {
        let values: Option<Vec<f64>> = row.seeds.iter().map(|seed| of(&seed.metric)).collect();
        let values = values.filter(|values| !values.is_empty());
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        values.map_or_else(dash, |values| format!("{:.4}", mean(values)))
    };
    let skips = |of: fn(&Seed) -> usize| row.seeds.iter().map(of).sum::<usize>();
    let memory = row.peak_memory_bytes.map_or_else(dash, |memory| {
        let show = |bytes: Option<u64>| bytes.map_or_else(dash, show_bytes);
        format!("{} / {}", show(memory.ours), show(memory.theirs))
    });
    let status = match row.status {
        Status::Agree => "agree",
        Status::Inconclusive => "inconclusive",
        Status::Disagree => "DISAGREE",
    };
    [
        row.model.clone(),
        row.precision.to_string(),
        first,
        row.metric.clone(),
        mean(|metric| metric.ours),
        mean(|metric| metric.theirs),
        format!(
            "{} / {}",
            skips(|seed| seed.skipped.ours.len()),
            skips(|seed| seed.skipped.theirs.len())
        ),
        memory,
        format!("{} / {}", row.lines.ours, row.lines.theirs),
        status.to_owned(),
    ]
}
