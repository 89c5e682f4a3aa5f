//! Formats the benchmark's report as tables for a terminal, and as a section of BENCHMARKS.md.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::significant;
use crate::bench::{
    report::{Report, Row},
    statistics::paired_ratio,
    target::{Goal, Target, Unit},
};
use crate::text::counted;

/// A table as texts. The first `names` columns contain names. The remaining columns contain numbers
/// and are aligned to the right.
struct Cells {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    names: usize,
}

impl Cells {
    fn new(names: usize, header: &[&str]) -> Self {
        let header = header.iter().map(|&text| text.to_owned()).collect();
        Self { header, rows: Vec::new(), names }
    }

    fn render(&self, preset: &str) -> String {
        let mut table = Table::new();
        table.load_preset(preset).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&self.header);
        table.add_rows(&self.rows);
        for column in table.column_iter_mut().skip(self.names) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{table}\n")
    }
}

/// Formats the benchmark's report for a terminal.
pub fn bench(report: &Report) -> String {
    let mut out = format!("{}\n", heading(report));
    for cells in tables(report) {
        out += &cells.render(presets::UTF8_FULL_CONDENSED);
    }
    for line in closing(report) {
        out += &format!("{line}\n");
    }
    out
}

/// Formats the report as a section of a Markdown page.
pub fn bench_markdown(report: &Report) -> String {
    let mut out = format!("## {}\n\n{}\n\n", report.fingerprint.device, heading(report));
    out += &format!("```console\n$ {}\n```\n", report.command);
    for cells in tables(report) {
        out += &format!("\n{}", cells.render(presets::ASCII_MARKDOWN));
    }
    let lines = closing(report);
    if !lines.is_empty() {
        out += "\n";
    }
    for line in lines {
        out += &format!("- {line}\n");
    }
    out
}

fn heading(report: &Report) -> String {
    let machine = &report.fingerprint;
    let place = match machine.threads {
        0 => format!(
            "{} (compute capability {}), {}",
            machine.device, machine.capability, report.cpu
        ),
        n => {
            format!("{} ({}), {}", machine.device, machine.capability, counted(n, "thread"))
        }
    };
    let versions: Vec<String> =
        report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!(
        "{place}; {}; {}; medians of {} interleaved rounds, ± half the interquartile range",
        versions.join(", "),
        report.date,
        report.rounds
    )
}

fn tables(report: &Report) -> Vec<Cells> {
    let mut tables = vec![figures(report)];
    if !report.overheads.is_empty() {
        tables.push(overheads(report));
    }
    if !report.feeds.is_empty() {
        tables.push(feeds(report));
    }
    if !report.targets.is_empty() {
        tables.push(targets(&report.targets));
    }
    tables
}

fn figures(report: &Report) -> Cells {
    let mut cells = Cells::new(
        3,
        &[
            "workload",
            "precision",
            "engine",
            "steps/s",
            "±",
            "ids/s",
            &format!("{} over it", report.our_engine().name()),
            "over 32-true",
            "memory",
            "first step",
            "host time",
            "matmul rate",
        ],
    );
    for row in &report.rows {
        let none = || "–".to_owned();
        let ours = report.ours(&row.workload, row.precision);
        let baseline =
            report.row(&row.workload, amp_core::precision::Precision::F32True, row.engine);
        let times = |of: Option<&Row>, over: Option<&Row>| {
            let ratio = paired_ratio(&of?.rates, &over?.rates)?;
            Some(format!("{ratio:.2}×"))
        };
        let rate = row.steps_per_second.filter(|_| row.failure.is_none());
        cells.rows.push(vec![
            row.workload.clone(),
            row.precision.to_string(),
            row.engine.name().to_owned(),
            rate.map_or("failed".to_owned(), |rate| significant(rate.median)),
            rate.map_or_else(none, |rate| format!("{:.1} %", 50.0 * rate.relative())),
            rate.zip(row.ids)
                .map_or_else(none, |(rate, ids)| significant(rate.median * ids as f64)),
            times(ours, Some(row).filter(|row| row.failure.is_none())).unwrap_or_else(none),
            times(Some(row), baseline).unwrap_or_else(none),
            row.peak_memory_bytes
                .map_or_else(none, |bytes| format!("{:.1} MB", bytes as f64 / 1e6)),
            row.first_step_seconds.map_or_else(none, |seconds| format!("{seconds:.1} s")),
            row.host_microseconds.map_or_else(none, |host| format!("{host:.0} µs")),
            report.matrix_share(row).map_or_else(none, |share| format!("{:.1} %", 100.0 * share)),
        ]);
    }
    cells
}

fn overheads(report: &Report) -> Cells {
    let mut cells = Cells::new(1, &["loop", "µs a step", "least", "most", "bare tensor work, µs"]);
    for overhead in &report.overheads {
        let ends = (overhead.microseconds.first(), overhead.microseconds.last());
        let (least, most) = (ends.0.copied(), ends.1.copied());
        cells.rows.push(vec![
            overhead.model.clone(),
            format!("{:.1}", overhead.median()),
            least.map_or_else(String::new, |value| format!("{value:.1}")),
            most.map_or_else(String::new, |value| format!("{value:.1}")),
            format!("{:.1}", overhead.bare_microseconds),
        ]);
    }
    cells
}

fn feeds(report: &Report) -> Cells {
    let mut cells = Cells::new(
        3,
        &["fed", "precision", "engine", "set", "from host, steps/s", "from device", "cost"],
    );
    for feed in &report.feeds {
        let Some((host, device)) = feed.rates() else { continue };
        cells.rows.push(vec![
            feed.workload.clone(),
            feed.precision.to_string(),
            feed.engine.name().to_owned(),
            format!("{} GB", feed.bytes as f64 / 1e9),
            significant(host.median),
            significant(device.median),
            feed.cost().map_or_else(String::new, |cost| format!("{:.1} %", 100.0 * cost)),
        ]);
    }
    cells
}

fn targets(targets: &[Target]) -> Cells {
    let mut cells = Cells::new(1, &["target", "wanted", "measured", ""]);
    for target in targets {
        let show = |value: f64| match target.unit {
            Unit::Times => format!("{value:.2}×"),
            Unit::Percent => format!("{:.1} %", 100.0 * value),
            Unit::Microseconds => format!("{value:.1} µs"),
        };
        cells.rows.push(vec![
            target.what.clone(),
            match target.goal {
                Goal::AtLeast(bound) => format!("≥ {}", show(bound)),
                Goal::AtMost(bound) => format!("≤ {}", show(bound)),
                Goal::Below(bound) => format!("< {}", show(bound)),
            },
            target.measured.map_or("–".to_owned(), show),
            target.outcome.name().to_owned(),
        ]);
    }
    cells
}

/// Returns the lines that follow the tables. They explain columns that are not obvious, and list
/// failures and notes.
fn closing(report: &Report) -> Vec<String> {
    let mut lines = vec![format!(
        "{0} over it: the speed of our engine `{0}`, divided by the speed of the row's engine; over 32-true: the speed \
         of the row's engine, divided by its speed under 32-true; memory: the peak of tensor bytes (for our engines, \
         bytes that were allocated before the run do not count, and the data set counts if it is on the device); \
         first step: the time from building the model to the end of its first step, including loading kernels and \
         compiling (only the first of our engines loads kernels; the PyTorch engines compile at the same time); \
         host time: the host's time for a step, measured with a small version of the model whose tensor operations take almost \
         no time",
        report.our_engine().name()
    )];
    let rates: Vec<f64> = report.bf16_matrix_rates.iter().map(|rate| rate / 1e12).collect();
    if let Some(rate) = crate::bench::statistics::Spread::of(&rates) {
        lines.push(format!(
            "matmul rate: the rate of a step's matrix products, as a fraction of the {:.0} TFLOP/s that products of \
             8192 × 8192 bf16 matrices reach on this device",
            rate.median
        ));
    }
    for row in &report.rows {
        if let Some(failure) = &row.failure {
            let Row { workload, precision, engine, .. } = row;
            lines.push(format!("{workload} {precision}, {}: {failure}", engine.name()));
        }
    }
    lines.extend(report.notes.iter().cloned());
    lines
}
