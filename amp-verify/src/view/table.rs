//! Formats a comparison of precisions as a table.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

use amp_core::{memory::show_bytes, trainer::show_count};

use crate::{
    comparison::{Comparison, Delta, FailedRun, OverSeeds, Run, Sample},
    registry::LOSS,
    text::{counted, signed},
};

/// Formats lines that describe the runs, the table of all runs, and notes. If the table is too wide
/// for the terminal, divides its columns between two tables.
pub fn table(comparison: &Comparison) -> String {
    let mut out = heading(comparison);
    let columns = columns(comparison);
    let whole = render(comparison, &columns);
    let fits = |width: u16| whole.lines().all(|line| line.chars().count() <= width.into());
    // A width of 0 means that the width of the terminal is unknown.
    if whole.width().is_none_or(|width| width == 0 || fits(width)) {
        out += &format!("{whole}\n");
    } else {
        let (results, costs) = columns.split_at(results(comparison));
        out += &format!("{}\n", render(comparison, results));
        let costs: Vec<Column> = columns[..1].iter().chain(costs).cloned().collect();
        out += &format!("{}\n", render(comparison, &costs));
    }
    if let [first, .., last] = comparison.seeds.as_slice() {
        out += &format!(
            "means over seeds {first} to {last} ± half of the 95 % interval (Student's t); Δ: mean of the differences \
             from 32-true with the same seed; scale, memory, time and dtypes: of seed {first}\n"
        );
    }
    for run in &comparison.runs {
        if let Some(cause) = &run.first_cause {
            out += &format!("{}: first skipped step: {cause}\n", run.precision);
        }
    }
    for note in comparison.notes() {
        out += &format!("{note}\n");
    }
    for run in &comparison.failed {
        out += &format!("{}\n", failure(run));
    }
    out
}

/// Says with which error a run failed.
pub(crate) fn failure(run: &FailedRun) -> String {
    format!("{}: failed with seed {}: {}", run.precision, run.seed, run.reason)
}

/// Describes what was trained, and on which machine.
pub(crate) fn heading(comparison: &Comparison) -> String {
    let subject = &comparison.subject;
    let machine = &subject.run.fingerprint;
    let first = show_count(subject.run.parameters);
    let parameters = match subject.trained_later {
        0 => format!("{first} parameters"),
        later => {
            let all = show_count(subject.run.parameters + later);
            format!("{first} parameters trained at first, {all} in all")
        }
    };
    format!(
        "{} ({}) on {}, {} epochs of {} batches of {}, seed {}\n{}{}, libtorch {}{}\n",
        subject.run.model,
        parameters,
        subject.run.data,
        subject.max_epochs,
        subject.batches_per_epoch,
        comparison.batch_size,
        subject.run.seed,
        machine.device,
        match machine.threads {
            0 => format!(" (compute capability {})", machine.capability),
            n => format!(" ({}, {})", machine.capability, counted(n, "thread")),
        },
        machine.libtorch,
        if machine.tf32 { ", TF32 on" } else { "" },
    )
}

#[derive(Clone)]
struct Column {
    header: String,
    cell: fn(&Run) -> String,
}

/// Returns how many columns the first table has if the table is divided: those up to the loss
/// scale. The second table has the remaining columns, with memory, times and dtypes.
fn results(comparison: &Comparison) -> usize {
    5 + metric_columns(comparison).len()
}

/// Returns two columns: the metric, and the difference of the metric from the baseline. Returns no
/// columns for a model that is judged by its loss, because the loss has its own columns.
fn metric_columns(comparison: &Comparison) -> Vec<Column> {
    let column = |header: &str, cell| Column { header: header.to_owned(), cell };
    let metric = comparison.metric.as_str();
    match comparison.direction.is_share() {
        _ if metric == LOSS => Vec::new(),
        true => vec![
            column(metric, |run| {
                let one = run.accuracy.map_or("not a number".into(), percent);
                over(run, |all| Some(&all.accuracy), percent, percent_width).unwrap_or(one)
            }),
            column("Δ", |run| {
                let one = delta(run, |d| d.accuracy.map(points));
                over(run, |all| all.accuracy_delta.as_ref(), points, percent_width).unwrap_or(one)
            }),
        ],
        false => vec![
            column(metric, |run| {
                let one = run.accuracy.map_or("not a number".into(), loss);
                over(run, |all| Some(&all.accuracy), loss, loss).unwrap_or(one)
            }),
            column("Δ", |run| {
                let one = delta(run, |d| d.accuracy.map(signed_loss));
                over(run, |all| all.accuracy_delta.as_ref(), signed_loss, loss).unwrap_or(one)
            }),
        ],
    }
}

fn columns(comparison: &Comparison) -> Vec<Column> {
    let column = |header: &str, cell| Column { header: header.to_owned(), cell };
    let mut columns = vec![column("precision", |run| run.precision.to_string())];
    columns.extend(metric_columns(comparison));
    columns.extend([
        column("val_loss", |run| {
            let one = run.loss.map_or("not finite".into(), loss);
            over(run, |all| Some(&all.loss), loss, loss).unwrap_or(one)
        }),
        column("Δ", |run| {
            let one = delta(run, |d| d.loss.map(signed_loss));
            over(run, |all| all.loss_delta.as_ref(), signed_loss, loss).unwrap_or(one)
        }),
        column("skipped", |run| {
            let (applied, skipped) = match &run.over_seeds {
                Some(all) => (all.applied_steps, all.skipped_steps),
                None => (run.applied_steps, run.skipped_steps),
            };
            format!("{skipped} of {}", applied + skipped)
        }),
        column("scale", |run| run.final_scale.map_or("–".into(), |scale| scale.to_string())),
        column("peak memory", |run| show_bytes(run.peak_memory_bytes)),
        column("×", |run| delta(run, |d| Some(format!("{:.2}", d.peak_memory_ratio)))),
        column("time", |run| format!("{:.2} s", run.train_seconds)),
        column("×", |run| delta(run, |d| Some(format!("{:.2}", d.train_seconds_ratio)))),
        column("matmul / loss / weights", |run| {
            let observed = &run.observed;
            let names = |set: &std::collections::BTreeSet<String>| {
                set.iter().map(|name| short(name)).collect::<Vec<_>>().join("+")
            };
            let (matmul, weights) = (names(&observed.matmul), names(&observed.parameters));
            format!("{matmul} / {} / {weights}", short(&observed.loss))
        }),
    ]);
    columns
}

fn render(comparison: &Comparison, columns: &[Column]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| &column.header));
    for run in &comparison.runs {
        table.add_row(columns.iter().map(|column| (column.cell)(run)));
    }
    for run in &comparison.failed {
        let blank = columns.iter().skip(2).map(|_| String::new());
        table.add_row([run.precision.to_string(), "failed".to_owned()].into_iter().chain(blank));
    }
    // The precision column, and columns whose header contains `/`, contain text. All other columns
    // contain numbers and are aligned to the right.
    for (column, of) in table.column_iter_mut().zip(columns) {
        if of.header != "precision" && !of.header.contains('/') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

fn percent_width(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

fn points(share: f64) -> String {
    signed(100.0 * share, 2)
}

fn loss(value: f64) -> String {
    format!("{value:.4}")
}

fn signed_loss(value: f64) -> String {
    signed(value, 4)
}

/// Formats the mean of the values that `of` selects, over the seeds, ± half of the width of its
/// confidence interval. Returns `None` if there is only one seed, and an empty text if `of` selects
/// nothing, as for the baseline's difference from itself.
fn over(
    run: &Run,
    of: impl Fn(&OverSeeds) -> Option<&Sample>,
    mean: impl Fn(f64) -> String,
    width: impl Fn(f64) -> String,
) -> Option<String> {
    let Some(sample) = of(run.over_seeds.as_ref()?) else { return Some(String::new()) };
    Some(match sample.interval {
        Some(interval) => format!("{} ± {}", mean(interval.mean), width(interval.half_width)),
        None => "not a number".into(),
    })
}

/// Formats a difference from the baseline with `text`. The result is empty for the baseline itself.
fn delta(run: &Run, text: impl Fn(&Delta) -> Option<String>) -> String {
    run.delta.as_ref().and_then(text).unwrap_or_default()
}

/// Shortens the name of a dtype: `bfloat16` to `bf16`, `float32` to `f32`.
fn short(dtype: &str) -> String {
    dtype.replace("bfloat", "bf").replace("float", "f")
}
