//! The comparison as a table.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

use crate::comparison::{Comparison, Run};

/// The table with a line above saying what ran and lines below with what should be known.
pub fn table(comparison: &Comparison) -> String {
    let subject = &comparison.subject;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{} ({} parameters) on {}, {} epochs of {} batches of {}, seed {}\n{}{}, libtorch {}{}",
        subject.model,
        grouped(subject.parameters),
        subject.data,
        subject.max_epochs,
        subject.batches_per_epoch,
        comparison.batch_size,
        subject.seed,
        subject.fingerprint.device,
        match subject.fingerprint.threads {
            0 => format!(" (compute capability {})", subject.fingerprint.capability),
            n => format!(" ({}, {n} threads)", subject.fingerprint.capability),
        },
        subject.fingerprint.libtorch,
        if subject.fingerprint.tf32 { ", TF32 on" } else { "" },
    );
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "precision",
        comparison.metric.as_str(),
        "Δ",
        "val_loss",
        "Δ",
        "skipped",
        "scale",
        "peak memory",
        "×",
        "time",
        "×",
        "matmul / loss / weights",
    ]);
    for run in &comparison.runs {
        table.add_row(row(run));
    }
    for column in 1..=10 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let _ = writeln!(out, "{table}");
    for run in &comparison.runs {
        if let Some(culprit) = &run.first_culprit {
            let _ =
                writeln!(out, "{}: first skipped step: `{culprit}` was not finite", run.precision);
        }
        for note in &run.notes {
            let _ = writeln!(out, "{}: {note}", run.precision);
        }
    }
    out
}

fn row(run: &Run) -> Vec<Cell> {
    let delta = run.delta.as_ref();
    let or = |text: Option<String>, none: &str| text.unwrap_or_else(|| none.to_owned());
    let set = |names: &std::collections::BTreeSet<String>| {
        names.iter().map(|name| short(name)).collect::<Vec<_>>().join("+")
    };
    let observed = &run.observed;
    [
        run.precision.to_string(),
        or(run.accuracy.map(|value| format!("{:.2}%", 100.0 * value)), "not a number"),
        or(delta.and_then(|d| d.accuracy).map(|value| format!("{:+.2}", 100.0 * value)), ""),
        or(run.loss.map(|value| format!("{value:.4}")), "not finite"),
        or(delta.and_then(|d| d.loss).map(|value| format!("{value:+.4}")), ""),
        match run.skipped_steps {
            0 => format!("0 of {}", run.applied_steps),
            skipped => format!("{skipped} of {}", run.applied_steps + skipped),
        },
        or(run.final_scale.map(|scale| format!("{scale}")), "–"),
        bytes(run.peak_memory_bytes),
        or(delta.map(|d| format!("{:.2}", d.peak_memory_ratio)), ""),
        format!("{:.2} s", run.train_seconds),
        or(delta.map(|d| format!("{:.2}", d.train_seconds_ratio)), ""),
        format!(
            "{} / {} / {}",
            set(&observed.matmul),
            short(&observed.loss),
            set(&observed.parameters)
        ),
    ]
    .map(Cell::new)
    .into()
}

/// `bfloat16` as `bf16`, `float32` as `f32`.
fn short(dtype: &str) -> String {
    dtype.replace("bfloat", "bf").replace("float", "f")
}

fn bytes(count: u64) -> String {
    let mib = count as f64 / (1 << 20) as f64;
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
