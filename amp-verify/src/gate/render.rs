//! Formats the gate's report: as a table for the terminal, as JUnit XML for CI, and as Markdown and
//! annotations for GitHub.

use std::collections::{BTreeMap, BTreeSet};

use amp_core::precision::Precision;
use comfy_table::{CellAlignment, Table, presets};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::{
    args::Tier,
    checked::Comparison,
    coverage::{Coverage, Row},
    report::{ModelReport, PrecisionResult, Report, Status},
};
use crate::{registry::Direction, text::of_bound, view::wrap_to_terminal};

const HEADER: [&str; 11] = [
    "model",
    "precision",
    "verdict",
    "rules checked",
    "closest to its bound",
    "mean d",
    "interval",
    "δ",
    "n",
    "power",
    "first failure",
];

/// Formats a difference between two values of a metric: in percentage points if the metric is a
/// fraction, such as an accuracy, and otherwise in the unit of the metric.
fn difference(direction: Direction, value: f64) -> String {
    match direction.is_share() {
        true => format!("{:+.2}", 100.0 * value),
        false => format!("{value:+.4}"),
    }
}

fn row(report: &Report, model: &ModelReport, result: &PrecisionResult) -> [String; 11] {
    let coverage = Coverage::of(report, model, result);
    let shown = |value| difference(model.direction, value);
    let of = |text: &dyn Fn(&crate::verdict::Judgement) -> String| {
        result.judgement.as_ref().map_or("–".into(), text)
    };
    [
        model.model.clone(),
        result.precision.to_string(),
        result.status.name().into(),
        format!("{} of {}", coverage.rules, coverage.of_rules),
        coverage
            .closest()
            .map_or("–".into(), |(row, share)| format!("{}: {}", row.rule, of_bound(share))),
        of(&|j| shown(j.mean)),
        of(&|j| format!("{} … {}", shown(j.lower), shown(j.upper))),
        shown(model.margin).trim_start_matches('+').to_owned(),
        result.seeds.len().to_string(),
        of(&|j| format!("{:.0}%", 100.0 * j.power)),
        result.note(),
    ]
}

fn rows(report: &Report) -> Vec<[String; 11]> {
    results(report).map(|(model, result)| row(report, model, result)).collect()
}

fn tier(report: &Report) -> &'static str {
    match report.tier {
        Tier::Quick => "quick",
        Tier::Nightly => "nightly",
    }
}

/// Formats the lines above the table: the tier, the machine, and the meaning of d, δ and α.
fn heading(report: &Report) -> String {
    let machine = report.fingerprint.as_ref().map_or("no run ended".into(), |machine| {
        let tf32 = if machine.tf32 { ", TF32 on" } else { "" };
        format!("{} ({}), libtorch {}{tf32}", machine.device, machine.capability, machine.libtorch)
    });
    let alpha = report.alpha;
    format!(
        "{} tier on {machine}\nd = how much worse the precision is than 32-true, δ = the margin; both in \
         percentage points for a fraction, else in the metric's unit; α = {alpha}",
        tier(report)
    )
}

/// Returns the diagnosis of each failing combination of model and precision: one line of text, and
/// the attribute that the user can paste into the model's struct.
fn findings(report: &Report) -> Vec<(String, &str)> {
    let mut found = Vec::new();
    for (model, result) in results(report) {
        if let Some(finding) = &result.finding {
            let line = format!("{} under {}: {}", model.model, result.precision, finding.text);
            found.push((line, finding.attribute.as_str()));
        }
    }
    found
}

fn results(report: &Report) -> impl Iterator<Item = (&ModelReport, &PrecisionResult)> {
    report.models.iter().flat_map(|model| model.results.iter().map(move |result| (model, result)))
}

/// Lists what was not checked, one line each, with the models and the precisions concerned.
fn missing(report: &Report) -> Vec<String> {
    let mut found: BTreeMap<String, BTreeMap<Precision, BTreeSet<&str>>> = BTreeMap::new();
    for (model, result) in results(report) {
        for missing in Coverage::of(report, model, result).missing {
            let whose =
                found.entry(missing.in_words()).or_default().entry(result.precision).or_default();
            whose.insert(model.model.as_str());
        }
    }
    let all = report.models.first().map_or(0, |model| model.results.len());
    let models = |models: &BTreeSet<&str>| match models.len() == report.models.len() {
        true => "every model".to_owned(),
        false => models.iter().copied().collect::<Vec<_>>().join(", "),
    };
    let line = |(text, whose): (&String, &BTreeMap<Precision, BTreeSet<&str>>)| {
        let same = whose.values().all(|models| Some(models) == whose.values().next());
        let whose = match whose.values().next() {
            Some(first) if same && whose.len() == all => models(first),
            _ => {
                let each =
                    whose.iter().map(|(precision, of)| format!("{} under {precision}", models(of)));
                each.collect::<Vec<_>>().join("; ")
            }
        };
        format!("not checked: {text}: {whose}")
    };
    found.iter().map(line).collect()
}

fn closing(report: &Report) -> Vec<String> {
    let notes = |model: &ModelReport| Some(format!("note: {}: {}", model.model, model.no_share()?));
    let mut lines: Vec<String> = report.models.iter().filter_map(notes).collect();
    lines.extend(missing(report));
    lines.extend(
        report.left_out.iter().map(|left| format!("checked only in the nightly tier: {left}")),
    );
    if report.undiagnosed > 0 {
        let more = report.undiagnosed;
        lines.push(format!("{more} more failures were not diagnosed: name the model with --model"));
    }
    lines.push(format!(
        "{}: {} runs, {} from the cache, {:.1} s",
        report.status.name(),
        report.executed,
        report.cached,
        report.seconds
    ));
    lines
}

/// Formats the report for a terminal: the table of verdicts, diagnoses, comparisons, and what was
/// not checked.
pub fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(HEADER);
    wrap_to_terminal(&mut table);
    for row in rows(report) {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(5).take(5) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    // A report on many models and precisions has hundreds of comparisons. The terminal shows only
    // those of failing precisions, but the files contain all of them.
    let all = results(report).count();
    let mut comparisons = String::new();
    for (model, result) in results(report) {
        if all <= LISTED || result.status == Status::Regression {
            comparisons += &compared(report, model, result);
        }
    }
    let mut found = String::new();
    for (line, attribute) in findings(report) {
        found += &format!("{line}\n");
        if !attribute.is_empty() {
            found += &format!("\n{attribute}\n\n");
        }
    }
    let heading = heading(report);
    format!("{heading}\n{table}\n{found}{comparisons}{}\n", closing(report).join("\n"))
}

/// If the report has more combinations of model and precision than this, the terminal shows only
/// the comparisons of the failing ones.
const LISTED: usize = 2;
/// The columns of the table of comparisons.
const COLUMNS: [&str; 6] =
    ["rule", "what was compared", "over", "figure", "bound", "share of the bound"];

/// Formats the comparisons for one model under one precision as a table.
fn compared(report: &Report, model: &ModelReport, result: &PrecisionResult) -> String {
    let coverage = Coverage::of(report, model, result);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(COLUMNS);
    wrap_to_terminal(&mut table);
    for row in &coverage.rows {
        table.add_row(comparison(row));
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let ran = coverage.ran.iter().map(|(name, text)| format!("{name}: {text}\n"));
    let ran: String = ran.collect();
    format!("{} under {}\n{ran}{table}\n", model.model, result.precision)
}

fn comparison(row: &Row) -> [String; 6] {
    let share = match row.result {
        Comparison::Broken => "BROKEN".to_owned(),
        Comparison::Shown => "not judged".to_owned(),
        Comparison::Open => "open".to_owned(),
        _ => row.share.map_or("–".to_owned(), of_bound),
    };
    [
        row.rule.to_owned(),
        row.what.clone(),
        row.over.clone(),
        row.figure.clone(),
        row.bound.clone(),
        share,
    ]
}

/// Formats the report in Markdown, for a job summary of GitHub.
pub fn markdown(report: &Report) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut out = format!("## Precision gate: {}\n\n", report.status.name());
    out += &format!("{}\n\n", heading(report).replace('\n', "\n\n"));
    out += &line(&HEADER.map(String::from));
    out += &line(
        &["---", "---", "---", "---", "---", "--:", "--:", "--:", "--:", "--:", "---"]
            .map(String::from),
    );
    for row in rows(report) {
        out += &line(&row);
    }
    for (model, result) in results(report) {
        let Coverage { ran, rows, missing, .. } = Coverage::of(report, model, result);
        let item = |text: String| format!("- {text}\n");
        let ran: String = ran.iter().map(|(name, text)| item(format!("{name}: {text}"))).collect();
        let missing: String = missing.iter().map(|missing| item(missing.in_words())).collect();
        let mut compared = line(&COLUMNS.map(String::from));
        compared += &line(&["---", "---", "---", "--:", "--:", "--:"].map(String::from));
        compared.extend(rows.iter().map(|row| line(&comparison(row))));
        out += &format!(
            "\n<details><summary>{} under {}: what was checked, and what was not</summary>\n\n\
             not checked:\n\n{missing}\nchecked:\n\n{ran}\n{compared}\n</details>\n",
            model.model, result.precision
        );
    }
    for (line, attribute) in findings(report) {
        out += &format!("\n{line}\n");
        if !attribute.is_empty() {
            out += &format!("\n```rust\n{attribute}\n```\n");
        }
    }
    for closing in closing(report) {
        out += &format!("\n{closing}\n");
    }
    out
}

/// Formats JUnit XML with a test suite for each model, and a test case for each precision. The
/// output of a test case contains the statistics and the comparisons.
///
/// # Errors
/// When there is not enough memory for the XML.
pub fn junit(report: &Report) -> Result<String, quick_junit::SerializeError> {
    let mut xml = quick_junit::Report::new("precision gate");
    for model in &report.models {
        let mut suite = TestSuite::new(model.model.as_str());
        for result in &model.results {
            let kind = match result.status {
                Status::Pass => None,
                Status::Regression => Some(NonSuccessKind::Failure),
                Status::Inconclusive | Status::NotComparable => Some(NonSuccessKind::Error),
            };
            let status = match kind {
                None => TestCaseStatus::success(),
                Some(kind) => {
                    let mut status = TestCaseStatus::non_success(kind);
                    status.set_type(result.status.name()).set_message(message(model, result));
                    let failures = result.failures.iter().map(|failure| failure.text.as_str());
                    let found = result.finding.iter();
                    let found = found.flat_map(|f| [f.text.as_str(), f.attribute.as_str()]);
                    status.set_description(failures.chain(found).collect::<Vec<_>>().join("\n"));
                    status
                }
            };
            let mut case = TestCase::new(result.precision.name(), status);
            case.set_classname(model.model.as_str());
            let figures = HEADER.iter().zip(row(report, model, result));
            let figures: Vec<String> =
                figures.map(|(name, value)| format!("{name}: {value}")).collect();
            let Coverage { ran, rows, missing, .. } = Coverage::of(report, model, result);
            let ran = ran.iter().map(|(name, text)| format!("{name}: {text}"));
            let rows = rows.iter().map(|row| format!("checked: {}", row.in_words()));
            let missing =
                missing.iter().map(|missing| format!("not checked: {}", missing.in_words()));
            let note = model.no_share().map(|note| format!("note: {note}"));
            let lines = figures.into_iter().chain(note).chain(ran).chain(rows).chain(missing);
            case.set_system_out(lines.collect::<Vec<_>>().join("\n"));
            suite.add_test_case(case);
        }
        xml.add_test_suite(suite);
    }
    xml.to_string()
}

/// Describes in one line why a model did not pass under a precision: the failure and, if there is
/// one, the diagnosis.
fn message(model: &ModelReport, result: &PrecisionResult) -> String {
    let failure = failure(model, result);
    match &result.finding {
        Some(finding) => format!("{failure}; {}", finding.text),
        None => failure,
    }
}

fn failure(model: &ModelReport, result: &PrecisionResult) -> String {
    let shown = |value| difference(model.direction, value);
    match (result.note(), &result.judgement) {
        (note, _) if !note.is_empty() => note,
        (_, Some(judgement)) => format!(
            "{} seeds are too few: the interval {} … {} contains the margin {}; power {:.0}%",
            judgement.n,
            shown(judgement.lower),
            shown(judgement.upper),
            shown(judgement.margin).trim_start_matches('+'),
            100.0 * judgement.power
        ),
        _ => String::new(),
    }
}

/// The largest number of results that are annotated. GitHub shows at most ten annotations of each
/// kind for a step of a workflow.
const SHOWN: usize = 8;

/// Formats GitHub workflow commands that annotate the run with the worst results. If not all
/// failures are shown, the last command says how many more there are.
pub fn annotations(report: &Report) -> String {
    let mut bad: Vec<(&ModelReport, &PrecisionResult)> =
        results(report).filter(|(_, result)| result.status != Status::Pass).collect();
    bad.sort_by_key(|(_, result)| std::cmp::Reverse(result.status));
    let mut out = String::new();
    for (model, result) in bad.iter().take(SHOWN) {
        let level = if result.status == Status::Regression { "error" } else { "warning" };
        let title = format!("{} {} under {}", result.status.name(), model.model, result.precision);
        out += &format!(
            "::{level} title={}::{}\n",
            property(&title),
            escaped(&message(model, result))
        );
    }
    if bad.len() > SHOWN {
        out += &format!("::warning::{} more are in the job summary\n", bad.len() - SHOWN);
    }
    out
}

/// Escapes the message of a GitHub workflow command, as GitHub's package actions/toolkit does.
fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes the value of a property, such as `title`, of a GitHub workflow command, as GitHub's
/// package actions/toolkit does.
fn property(text: &str) -> String {
    escaped(text).replace(':', "%3A").replace(',', "%2C")
}
