//! The HTML page with the tables and charts of a comparison of precisions.

use amp_core::{Result, precision::Precision};

use super::{
    RunHistories, RunHistory,
    chart::{self, Share},
    color::{self, ChartColor},
    steps, table, wilson,
};
use crate::{
    comparison::{Comparison, Run, Sample},
    layers,
    registry::LOSS,
    view::heading,
};

const STYLE: &str = include_str!("style.css");

/// The data that the page shows.
pub struct Content<'a> {
    /// The results of the runs under all precisions.
    pub comparison: &'a Comparison,
    /// The losses and loss scales of the runs over time.
    pub histories: &'a RunHistories,
    /// The number of validation examples, from which the confidence interval of an accuracy is
    /// computed.
    pub examples: i64,
    /// The measured errors of the layers in one step under each precision, or the reason why they
    /// could not be measured.
    pub steps: &'a Result<Vec<layers::Report>>,
}

/// Creates the HTML page.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn html(content: &Content<'_>) -> Result<String> {
    let Content { comparison, histories, .. } = content;
    let subject = &comparison.subject;
    let precisions = comparison.runs.len();
    let mut body = format!(
        "<header>\n<h1>{} under {precisions} precision{}</h1>\n<p class=\"subject\">{}</p>\n{}</header>\n",
        escaped(&subject.run.model),
        if precisions == 1 { "" } else { "s" },
        escaped(heading(comparison).trim_end()),
        table::comparison(comparison)
    );
    // If the model is judged by its loss, the page has no chart of the metric, because the loss has
    // its own charts.
    if comparison.metric != LOSS {
        body += &metric(content)?;
    }
    let of = |run: &Run| histories.of(run.precision);
    for (title, name, points) in [
        (
            "Validation loss",
            "val_loss",
            (|history| &history.val_loss) as fn(&RunHistory) -> &Vec<_>,
        ),
        ("Training loss", "train_loss", |history| &history.train_loss),
    ] {
        let all: Vec<Line> = comparison
            .runs
            .iter()
            .filter_map(|run| Some((run.precision, points(of(run)?).clone())))
            .filter(|(_, points)| !points.is_empty())
            .collect();
        if !all.is_empty() {
            let text = format!("At the end of each epoch, seed {}.", subject.run.seed);
            body += &Section::new(title, &text).legend(&all).chart(chart::lines(&all, name)?);
        }
        let beside = against_first(&all);
        if !beside.is_empty() {
            let title = format!("{title}, minus that of 32-true");
            let text = "At the end of each epoch; above zero is worse than 32-true.";
            let y_label = format!("{name} − 32-true's");
            let drawn = chart::lines(&beside, &y_label)?;
            body += &Section::new(&title, text).legend(&beside).chart(drawn);
        }
    }
    for run in &comparison.runs {
        let Some(history) = of(run).filter(|history| !history.scale.is_empty()) else { continue };
        let text = match history.skips.len() {
            0 => "No step was skipped.".to_owned(),
            1 => "The one skipped step is marked with a cross.".to_owned(),
            n => format!("The {n} skipped steps are marked with crosses."),
        };
        let title = format!("Loss scale under {}", run.precision);
        let drawn = chart::scale(run.precision, &history.scale, &history.skips)?;
        body += &Section::new(&title, &text).chart(drawn);
    }
    let mib = |run: &Run| (run.precision, run.peak_memory_bytes as f64 / f64::from(1 << 20));
    let memory: Vec<_> = comparison.runs.iter().map(mib).collect();
    let text = "The largest number of bytes that tensors occupied, minus the bytes before the run.";
    body += &Section::new("Peak memory", text).chart(chart::bars(&memory, "MiB")?);
    body += &steps::sections(content.steps)?;
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{}: precisions compared</title>\n<style>\n{}{STYLE}</style>\n</head>\n<body>\n\
         <main>\n{body}</main>\n</body>\n</html>\n",
        escaped(&subject.run.model),
        color::style()
    ))
}

/// A line of a chart: the precision that it belongs to, and its points.
type Line = (Precision, Vec<(f64, f64)>);

/// Draws the metric under each precision with a confidence interval. With several seeds, this is
/// the interval of the mean over the seeds. With one seed, it is Wilson's interval, which exists
/// only for a fraction such as an accuracy. Otherwise there is no chart. With several seeds, also
/// draws the differences of the metric from 32-true.
fn metric(content: &Content<'_>) -> Result<String> {
    let Content { comparison, examples, .. } = content;
    let is_share = comparison.direction.is_share();
    let percent = |share: f64| if is_share { 100.0 * share } else { share };
    let axis =
        if is_share { format!("{}, %", comparison.metric) } else { comparison.metric.clone() };
    let metric = escaped(&comparison.metric);
    if comparison.seeds.len() < 2 {
        if !is_share {
            // A single value without an interval needs no chart: the table shows it.
            return Ok(String::new());
        }
        let share = |run: &Run| {
            let value = run.accuracy?;
            let (low, high) = wilson(value, *examples);
            Some(Share {
                precision: run.precision,
                value: percent(value),
                interval: (percent(low), percent(high)),
                each: Vec::new(),
            })
        };
        let shares: Vec<Share> = comparison.runs.iter().filter_map(share).collect();
        let text = format!(
            "Wilson's 95 % interval for one seed with {examples} validation examples. If two intervals \
             overlap, chance may explain the difference; compare more seeds with --seeds N."
        );
        let title = format!("{metric} with 95 % intervals");
        let drawn = chart::shares(&shares, &axis)?;
        return Ok(Section::new(&title, &text).chart(drawn));
    }
    let shares = |of: fn(&Run) -> Option<&Sample>| -> Vec<Share> {
        let share = |run: &Run| {
            let sample = of(run)?;
            let interval = sample.interval?;
            let (low, high) =
                (interval.mean - interval.half_width, interval.mean + interval.half_width);
            Some(Share {
                precision: run.precision,
                value: percent(interval.mean),
                interval: (percent(low), percent(high)),
                each: sample.values.iter().flatten().map(|value| percent(*value)).collect(),
            })
        };
        comparison.runs.iter().filter_map(share).collect()
    };
    let n = comparison.seeds.len();
    let means = shares(|run| Some(&run.over_seeds.as_ref()?.accuracy));
    let title = format!("{metric}, mean of {n} seeds");
    let text = "With Student's 95 % interval of the mean; each ring is one seed.";
    let drawn = chart::shares(&means, &axis)?;
    let mut sections = Section::new(&title, text).chart(drawn);
    let deltas = shares(|run| run.over_seeds.as_ref()?.accuracy_delta.as_ref());
    if !deltas.is_empty() {
        let title = format!("{metric} minus 32-true's, for each seed");
        let worse = if comparison.direction.is_higher() { "Below" } else { "Above" };
        let text = format!(
            "Mean of the paired differences with Student's 95 % interval: an interval that \
             contains zero shows no difference. {worse} zero is worse than 32-true."
        );
        let unit = if is_share { "percentage points" } else { axis.as_str() };
        let drawn = chart::shares(&deltas, unit)?;
        sections += &Section::new(&title, &text).chart(drawn);
    }
    Ok(sections)
}

/// Subtracts the first line, which is that of 32-true, from each other line. If two lines have
/// different numbers of points, the excess points of the longer one are left out.
fn against_first(all: &[Line]) -> Vec<Line> {
    let Some(((_, first), others)) = all.split_first() else { return Vec::new() };
    let less = |points: &[(f64, f64)]| {
        let pairs = points.iter().zip(first);
        pairs.map(|((step, value), (_, baseline))| (*step, value - baseline)).collect()
    };
    others.iter().map(|(precision, points)| (*precision, less(points))).collect()
}

/// A section of the page: a title, a text, a legend and a chart. The legend is above the chart, so
/// that it hides no data.
pub(super) struct Section {
    title: String,
    text: String,
    keys: Vec<(String, ChartColor)>,
    below: String,
}

impl Section {
    /// Creates a section without a chart. `title` and `text` are HTML.
    pub(super) fn new(title: &str, text: &str) -> Self {
        let (title, text) = (title.to_owned(), text.to_owned());
        Self { title, text, keys: Vec::new(), below: String::new() }
    }

    pub(super) fn keys(mut self, keys: impl IntoIterator<Item = (String, ChartColor)>) -> Self {
        self.keys.extend(keys);
        self
    }

    fn legend(self, lines: &[Line]) -> Self {
        let keys = lines
            .iter()
            .map(|(precision, _)| (precision.name().to_owned(), ChartColor::of(*precision)));
        self.keys(keys)
    }

    /// Adds HTML below the chart of the section.
    pub(super) fn below(mut self, html: &str) -> Self {
        self.below.push_str(html);
        self
    }

    pub(super) fn chart(self, svg: String) -> String {
        let Self { title, text, keys, below } = self;
        let key = |(name, color): &(String, ChartColor)| {
            let colour = color.variable();
            format!(
                "<li><span class=\"key\" style=\"background: {colour}\"></span>{}</li>",
                escaped(name)
            )
        };
        let legend: String = keys.iter().map(key).collect();
        let legend = match legend.is_empty() {
            true => legend,
            false => format!("<ul class=\"legend\">{legend}</ul>\n"),
        };
        let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{title}\" "), 1);
        format!(
            "<section>\n<h2>{title}</h2>\n<p>{text}</p>\n{legend}<figure>{svg}</figure>\n{below}</section>\n"
        )
    }
}

pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
