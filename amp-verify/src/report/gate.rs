//! The gate's verdicts as one HTML file: what was checked of each model, and what was not, stands
//! beside the verdict.

use super::{ink, page::escaped};
use crate::gate::{Coverage, ModelReport, Report, Status};

const STYLE: &str = include_str!("style.css");
const OWN_STYLE: &str = include_str!("gate.css");

/// The page of a report.
pub fn gate_html(report: &Report) -> String {
    let machine = report.fingerprint.as_ref().map_or("no run ended".to_owned(), |machine| {
        format!("{} ({}), libtorch {}", machine.device, machine.capability, machine.libtorch)
    });
    let mut body = format!(
        "<header>\n<h1>Precision gate: {}</h1>\n<p class=\"subject\">{}\n{} runs, {} known from before, \
         {:.0} s; α = {}</p>\n{}</header>\n",
        verdict(report.status),
        escaped(&machine),
        report.executed,
        report.cached,
        report.seconds,
        report.alpha,
        list("Left to the nightly tier", &report.left_out)
    );
    for model in &report.models {
        body += &section(report, model);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Precision gate: {}</title>\n<style>\n{}{STYLE}{OWN_STYLE}</style>\n</head>\n<body>\n\
         <main class=\"gate\">\n{body}</main>\n</body>\n</html>\n",
        report.status.name(),
        ink::style()
    )
}

fn section(report: &Report, model: &ModelReport) -> String {
    let mut out = format!("<section>\n<h2>{}</h2>\n", escaped(&model.model));
    for cell in &model.cells {
        let coverage = Coverage::of(report, model, cell);
        let judged = cell.judgement.as_ref().map_or(String::new(), |judgement| {
            let unit = if model.direction.is_higher() { 100.0 } else { 1.0 };
            format!(
                "<p>worse than 32-true by {:+.2} ({:+.2} … {:+.2}), δ {:.2}, n {}</p>\n",
                unit * judgement.mean,
                unit * judgement.lower,
                unit * judgement.upper,
                unit * model.margin,
                judgement.n
            )
        });
        let failures: Vec<String> =
            cell.failures.iter().map(|failure| failure.text.clone()).collect();
        let found: Vec<String> = cell.finding.iter().map(|found| found.text.clone()).collect();
        out += &format!(
            "<div class=\"cell\">\n<div class=\"verdict\">\n<h3>{}: {}</h3>\n{judged}{}{}</div>\n\
             <div>{}</div>\n<div>{}</div>\n</div>\n",
            cell.precision,
            verdict(cell.status),
            list("What failed", &failures),
            list("Found", &found),
            list(
                &format!("Checked: {} of {} rules", coverage.rules, coverage.of_rules),
                &coverage.checked
            ),
            list("Not checked", &coverage.missing)
        );
    }
    out + "</section>\n"
}

fn verdict(status: Status) -> String {
    let class = match status {
        Status::Pass => "pass",
        Status::Regression => "fail",
        Status::Inconclusive | Status::NotComparable => "open",
    };
    format!("<span class=\"{class}\">{}</span>", status.name())
}

fn list(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", escaped(line))).collect();
    format!("<h4>{}</h4>\n<ul>\n{items}</ul>\n", escaped(title))
}
