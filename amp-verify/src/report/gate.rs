//! The gate's report as one HTML file. It begins with the first failure and a table of all
//! verdicts. Then a section for each model shows what was checked, what was not checked, and all
//! comparisons of a measured value with its bound.

use super::{color, page::escaped};
use crate::{
    gate::{Comparison, Coverage, Finding, ModelReport, PrecisionResult, Report, Row, Status},
    text::of_bound,
};

const STYLE: &str = include_str!("style.css");
const OWN_STYLE: &str = include_str!("gate.css");

/// Formats the gate's report as an HTML page.
pub fn gate_html(report: &Report) -> String {
    let machine = report.fingerprint.as_ref().map_or("no run ended".to_owned(), |machine| {
        format!("{} ({}), libtorch {}", machine.device, machine.capability, machine.libtorch)
    });
    let mut body = format!(
        "<header>\n<h1>Precision gate: {}</h1>\n<p class=\"subject\">{}\n{} runs, {} from the cache, \
         {:.0} s; risk α = {}</p>\n{}{}{}</header>\n",
        verdict(report.status),
        escaped(&machine),
        report.executed,
        report.cached,
        report.seconds,
        report.alpha,
        first_failure(report),
        summary(report),
        list("Checked only in the nightly tier", &report.left_out)
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
        color::style()
    )
}

fn results(report: &Report) -> impl Iterator<Item = (&ModelReport, &PrecisionResult)> {
    report.models.iter().flat_map(|model| model.results.iter().map(move |result| (model, result)))
}

/// Describes the combination of model and precision with the worst status: its first failure, and
/// the diagnosis (the layer at fault, and what to do).
fn first_failure(report: &Report) -> String {
    let failing = results(report).filter(|(_, result)| result.status != Status::Pass);
    let Some((model, result)) = failing.max_by_key(|(_, result)| result.status) else {
        return String::new();
    };
    let of = format!("{} under {}", model.model, result.precision);
    let note = match result.note() {
        note if note.is_empty() => "too few seeds to decide".to_owned(),
        note => note,
    };
    let rule = result
        .failures
        .first()
        .map_or(String::new(), |failure| format!("<strong>{}</strong>: ", failure.reason.title()));
    format!(
        "<div class=\"alarm\">\n<h2><a href=\"#{}\">{}: {}</a></h2>\n<p>{rule}{}</p>\n{}</div>\n",
        anchor(model, result),
        escaped(&of),
        result.status.name(),
        escaped(&note),
        result.finding.as_ref().map_or(String::new(), found)
    )
}

fn found(finding: &Finding) -> String {
    let mut out = String::new();
    if let Some(layer) = &finding.layer {
        out += &format!(
            "<p>Suspected layer: <code>{}</code>, whose own error is {}</p>\n",
            escaped(layer),
            escaped(&finding.layer_error_text())
        );
    }
    out += &format!("<p>{}</p>\n", escaped(&finding.text));
    if !finding.attribute.is_empty() {
        out += &format!("<p>Remedy:</p>\n<pre>{}</pre>\n", escaped(&finding.attribute));
    }
    out
}

fn anchor(model: &ModelReport, result: &PrecisionResult) -> String {
    escaped(&format!("{}-{}", model.model, result.precision).replace(' ', "-"))
}

/// Formats the table of verdicts, with one row for each model and precision.
fn summary(report: &Report) -> String {
    let mut rows = String::new();
    for (model, result) in results(report) {
        let coverage = Coverage::of(report, model, result);
        let closest = coverage.closest().map_or(String::new(), |(row, share)| {
            format!("{} <span class=\"of\">{}</span>", bar(share), row.rule)
        });
        rows += &format!(
            "<tr><th scope=\"row\"><a href=\"#{}\">{}</a></th><td>{}</td><td>{}</td><td>{} of {}</td>\
             <td>{}</td><td class=\"share\">{closest}</td></tr>\n",
            anchor(model, result),
            escaped(&model.model),
            result.precision,
            verdict(result.status),
            coverage.rules,
            coverage.of_rules,
            coverage.missing.len(),
        );
    }
    format!(
        "<div class=\"wide\"><table class=\"summary\">\n<thead><tr><th>model</th><th>precision</th>\
         <th>verdict</th><th>rules checked</th><th>not checked</th><th>closest to its bound</th></tr>\
         </thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

fn section(report: &Report, model: &ModelReport) -> String {
    let mut out = format!("<section>\n<h2>{}</h2>\n", escaped(&model.model));
    out += &model.no_share().map_or(String::new(), |note| format!("<p>{}</p>\n", escaped(&note)));
    for result in &model.results {
        let coverage = Coverage::of(report, model, result);
        let judged = result.judgement.as_ref().map_or(String::new(), |judgement| {
            let is_share = model.direction.is_share();
            let (times, unit) = if is_share { (100.0, " points") } else { (1.0, "") };
            format!(
                "<p>{}: worse than 32-true by {:+.2}{unit} ({:+.2} … {:+.2}); accepted: {:.2}{unit}; {} \
                 seeds</p>\n",
                escaped(&model.metric),
                times * judgement.mean,
                times * judgement.lower,
                times * judgement.upper,
                times * model.margin,
                judgement.n
            )
        });
        let failures: Vec<String> = result
            .failures
            .iter()
            .map(|failure| format!("{}: {}", failure.reason.title(), failure.text))
            .collect();
        let missing: Vec<String> =
            coverage.missing.iter().map(|missing| missing.in_words()).collect();
        let ran: String = coverage
            .ran
            .iter()
            .map(|(name, text)| format!("<dt>{name}</dt><dd>{}</dd>\n", escaped(text)))
            .collect();
        out += &format!(
            "<article id=\"{}\">\n<div class=\"sides\">\n<div>\n<h3>{}: {}</h3>\n{}{}{judged}\
             <dl>\n{ran}</dl>\n</div>\n<div>\n<h3>Not checked: {}</h3>\n{}</div>\n</div>\n\
             <h4>Checked: {} of {} rules</h4>\n{}</article>\n",
            anchor(model, result),
            result.precision,
            verdict(result.status),
            list("What failed", &failures),
            result.finding.as_ref().map_or(String::new(), found),
            missing.len(),
            items(&missing),
            coverage.rules,
            coverage.of_rules,
            table(&coverage.rows)
        );
    }
    out + "</section>\n"
}

/// Formats the table of measured values and their bounds. The name and the description of a rule
/// appear only once, beside all rows of the rule.
fn table(rows: &[Row]) -> String {
    let mut body = String::new();
    for of_rule in rows.chunk_by(|a, b| a.rule == b.rule) {
        for (at, row) in of_rule.iter().enumerate() {
            let class = match row.result {
                Comparison::Broken => " class=\"broken\"",
                _ => "",
            };
            body += &format!("<tr{class}>");
            if at == 0 {
                body += &format!(
                    "<th scope=\"row\" rowspan=\"{}\">{}<span class=\"of\">{}</span></th>",
                    of_rule.len(),
                    row.rule,
                    escaped(row.compares)
                );
            }
            let share = match (row.result, row.share) {
                (Comparison::Shown, _) => "not judged".to_owned(),
                (Comparison::Broken, None) => "<strong class=\"fail\">broken</strong>".to_owned(),
                (_, Some(share)) => bar(share),
                (_, None) => "<span class=\"pass\">✓</span>".to_owned(),
            };
            body += &format!(
                "<td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td>\
                 <td class=\"share\">{share}</td></tr>\n",
                escaped(&row.what),
                escaped(&row.over),
                escaped(&row.figure),
                escaped(&row.bound)
            );
        }
    }
    format!(
        "<div class=\"wide\"><table class=\"checks\">\n<thead><tr><th>rule: what it compares</th>\
         <th>compared</th><th>over</th><th class=\"number\">figure</th><th class=\"number\">bound</th>\
         <th>share of the bound</th></tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
    )
}

/// Draws a bar. Its length shows `share`, a measured value divided by the bound of this value.
fn bar(share: f64) -> String {
    let (width, class) = match share > 1.0 {
        true => (100.0, "bar beyond"),
        false => (100.0 * share, "bar"),
    };
    format!(
        "<span class=\"{class}\"><span style=\"width: {width:.0}%\"></span></span> {}",
        escaped(&of_bound(share))
    )
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
    match lines.is_empty() {
        true => String::new(),
        false => format!("<h4>{}</h4>\n{}", escaped(title), items(lines)),
    }
}

fn items(lines: &[String]) -> String {
    let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", escaped(line))).collect();
    format!("<ul>\n{items}</ul>\n")
}
