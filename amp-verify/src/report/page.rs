//! The page around the charts.

use amp_core::{Result, precision::Precision};

use super::{
    Course, Courses,
    chart::{self, DARK, LIGHT, Palette, Share},
    wilson,
};
use crate::{
    comparison::{Comparison, Run},
    view::heading,
};

const STYLE: &str = include_str!("style.css");

/// The page. `examples` is the number of validation examples, from which the interval of a share
/// follows.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn html(comparison: &Comparison, courses: &Courses, examples: i64) -> Result<String> {
    let subject = &comparison.subject;
    let mut body = format!(
        "<h1>{} under {} precisions</h1>\n<pre class=\"subject\">{}</pre>\n",
        escaped(&subject.model),
        comparison.runs.len(),
        escaped(heading(comparison).trim_end())
    );
    body += &table(comparison);
    let shares: Vec<Share> = comparison
        .runs
        .iter()
        .filter_map(|run| {
            let value = run.accuracy?;
            Some(Share { precision: run.precision, value, interval: wilson(value, examples) })
        })
        .collect();
    body += &section(
        &format!("{}, with 95 % intervals", escaped(&comparison.metric)),
        &format!(
            "What chance alone makes of {examples} validation examples (Wilson's interval), for \
             one seed: intervals that overlap are no sign of a difference."
        ),
        |palette| chart::shares(palette, &shares),
    )?;
    let of = |run: &Run| courses.of(run.precision);
    for (title, name, points) in [
        ("Validation loss", "val_loss", (|course| &course.val_loss) as fn(&Course) -> &Vec<_>),
        ("Training loss", "train_loss", |course| &course.train_loss),
    ] {
        let all: Vec<(Precision, Vec<(f64, f64)>)> = comparison
            .runs
            .iter()
            .filter_map(|run| Some((run.precision, points(of(run)?).clone())))
            .filter(|(_, points)| !points.is_empty())
            .collect();
        if !all.is_empty() {
            let text = "At the end of each epoch.";
            body += &section(title, text, |palette| chart::lines(palette, &all, name))?;
        }
        let beside = against_first(&all);
        if !beside.is_empty() {
            let title = format!("{title}, less that of 32-true");
            let text = "Epoch by epoch; above zero is worse than 32-true.";
            body += &section(&title, text, |palette| chart::lines(palette, &beside, "difference"))?;
        }
    }
    for run in &comparison.runs {
        let Some(course) = of(run).filter(|course| !course.scale.is_empty()) else { continue };
        let text = match course.skips.len() {
            0 => "No step was skipped.".to_owned(),
            n => format!("{n} skipped steps are marked with a cross."),
        };
        body += &section(&format!("Loss scale under {}", run.precision), &text, |palette| {
            chart::scale(palette, run.precision, &course.scale, &course.skips)
        })?;
    }
    let mib = |run: &Run| (run.precision, run.peak_memory_bytes as f64 / f64::from(1 << 20));
    let memory: Vec<_> = comparison.runs.iter().map(mib).collect();
    body += &section("Peak memory", "Bytes of tensors, above what was held before.", |palette| {
        chart::bars(palette, &memory, "MiB")
    })?;
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         </body>\n</html>\n",
        escaped(&subject.model)
    ))
}

/// Every line but the first, less the first, as far as both go.
fn against_first(all: &[(Precision, Vec<(f64, f64)>)]) -> Vec<(Precision, Vec<(f64, f64)>)> {
    let Some(((_, first), others)) = all.split_first() else { return Vec::new() };
    let less = |points: &[(f64, f64)]| {
        let pairs = points.iter().zip(first);
        pairs.map(|((step, value), (_, baseline))| (*step, value - baseline)).collect()
    };
    others.iter().map(|(precision, points)| (*precision, less(points))).collect()
}

/// A chart under its title, drawn for light and for dark; the style shows one.
fn section(title: &str, text: &str, draw: impl Fn(&Palette) -> Result<String>) -> Result<String> {
    let (light, dark) = (draw(&LIGHT)?, draw(&DARK)?);
    Ok(format!(
        "<section>\n<h2>{title}</h2>\n<p>{text}</p>\n<figure class=\"light\">{light}</figure>\n\
         <figure class=\"dark\">{dark}</figure>\n</section>\n"
    ))
}

fn table(comparison: &Comparison) -> String {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
    };
    let rows = comparison.runs.iter().map(|run| {
        let delta = run.delta.as_ref();
        let points = delta.and_then(|delta| delta.accuracy);
        let cells = [
            number(run.accuracy.map(|share| 100.0 * share), 2),
            points.map_or(String::new(), |points| format!("{:+.2}", 100.0 * points)),
            number(run.loss, 4),
            format!("{} of {}", run.skipped_steps, run.applied_steps + run.skipped_steps),
            number(run.final_scale, 0),
            format!("{:.1}", run.peak_memory_bytes as f64 / f64::from(1 << 20)),
            delta.map_or(String::new(), |delta| format!("{:.2}", delta.peak_memory_ratio)),
            format!("{:.2}", run.train_seconds),
        ];
        let cells: String = cells.map(|cell| format!("<td>{}</td>", escaped(&cell))).concat();
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", run.precision)
    });
    let heads = [
        "precision",
        &comparison.metric,
        "Δ points",
        "val_loss",
        "skipped",
        "scale",
        "MiB",
        "×",
        "seconds",
    ];
    let heads: String =
        heads.map(|head| format!("<th scope=\"col\">{}</th>", escaped(head))).concat();
    let causes = comparison.runs.iter().filter_map(|run| {
        let cause = run.first_cause.as_deref()?;
        Some(format!("<li>{}: first skipped step: {}</li>\n", run.precision, escaped(cause)))
    });
    let notes = comparison.runs.iter().flat_map(|run| {
        run.notes.iter().map(|note| format!("<li>{}: {}</li>\n", run.precision, escaped(note)))
    });
    let list: String = causes.chain(notes).collect();
    format!(
        "<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{}</tbody>\n</table>\n<ul>\n{list}</ul>\n",
        rows.collect::<String>()
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
