//! Lists what the gate has checked for a model under a precision, and what it has not checked.
//! Every output format of the report (table, JUnit, Markdown, HTML) uses this list.

use std::collections::BTreeSet;

use amp_core::memory::show_bytes;

use super::{
    checked::{Checked, Comparison, Unit},
    deadline::OVER,
    job::Task,
    path::PathReport,
    reason::Reason,
    report::{ModelReport, PrecisionResult, Report},
};
use crate::{
    text::significant,
    verdict::{Judgement, Verdict},
};

/// The comparisons that were made for one model under one precision, and a list of what was not
/// checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Coverage {
    /// Name and value of each property of the runs: `metric`, `changed`, `memory`, `path`, `modes`
    /// and `size`.
    pub ran: Vec<(&'static str, String)>,
    /// The comparisons of measured values with their bounds, ordered by rule.
    pub rows: Vec<Row>,
    /// What was not checked, for example a rule of the gate or CUDA graphs, with the reasons.
    pub missing: Vec<Missing>,
    /// The number of the gate's rules that were checked.
    pub rules: usize,
    /// The number of all rules of the gate in the jobs' results, including those that were left
    /// out.
    pub of_rules: usize,
}

/// One comparison of a measured value with its bound, formatted as texts for a row of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The title of the gate's rule that was checked.
    pub rule: &'static str,
    /// A description of how the gate checks the rule.
    pub compares: &'static str,
    /// The quantity that was compared for this model and precision.
    pub what: String,
    /// A description of the run: its mode, its number of steps and its seeds.
    pub over: String,
    /// The measured value with its unit.
    pub figure: String,
    /// The bound of the measured value, with its unit.
    pub bound: String,
    /// The measured value divided by its bound. `None` if there is no bound, or if the rule only
    /// requires that values are equal.
    pub share: Option<f64>,
    /// What the comparison shows.
    pub result: Comparison,
}

/// Something that was not checked, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The title of a rule of the gate, or a description of what was not checked.
    pub what: String,
    /// The reason why `what` was not checked. Empty if no reason is known.
    pub why: String,
}

impl Missing {
    fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }

    /// Formats in one line what was not checked, and why.
    pub fn in_words(&self) -> String {
        let Self { what, why } = self;
        if why.is_empty() { what.clone() } else { format!("{what}: {why}") }
    }
}

impl Row {
    fn new(checked: &Checked, seeds: &str) -> Self {
        Self {
            rule: checked.rule.title(),
            compares: checked.rule.compares(),
            what: checked.what.clone(),
            over: format!("{}, {seeds}", checked.over),
            figure: checked.figure(),
            bound: checked.bound(),
            share: checked.share(),
            result: checked.result,
        }
    }

    /// Formats in one line what was compared, the measured value and its bound.
    pub fn in_words(&self) -> String {
        let Self { rule, what, over, figure, bound, .. } = self;
        let found = match self.result {
            Comparison::Shown => format!("{figure}, not judged"),
            Comparison::Open => format!("{figure}, bound {bound}: too few seeds to decide"),
            Comparison::Broken => format!("{figure}, BROKEN"),
            _ if figure == bound => figure.clone(),
            _ => format!("{figure}, bound {bound}"),
        };
        format!("{rule}: {what}: {found} ({over})")
    }
}

impl Coverage {
    /// Lists what was checked for a model under a precision.
    pub fn of(report: &Report, model: &ModelReport, result: &PrecisionResult) -> Self {
        let mut coverage = Self::default();
        let all = seeds(&result.seeds);
        // The rules about the first steps and about the training path were checked with one seed.
        // It is read from the jobs, because `result.seeds` is empty if there were no full training
        // runs.
        let of_rules = report.jobs.iter().find(|job| {
            (&job.model, job.precision) == (&model.model, result.precision)
                && matches!(job.task, Task::Conformance | Task::Path)
        });
        let first = match of_rules {
            Some(job) => seeds(&[job.seed]),
            None => seeds(result.seeds.get(..1).unwrap_or_default()),
        };
        let why = match result.seeds.len() {
            0 | 1 if result.cut_short || result.rules_cut_short => OVER,
            0 => "a rule is broken, so there were no full training runs",
            _ => "a run failed",
        };
        if let Some(judgement) = &result.judgement {
            coverage.rows.push(metric(model, judgement, &all));
        } else {
            coverage.missing.push(Missing::new(METRIC, why));
        }
        let mut checked: Vec<(&Checked, &str)> = Vec::new();
        match &result.runs {
            Some(runs) => checked.extend(runs.iter().map(|run| (run, all.as_str()))),
            None => coverage.missing.push(Missing::new("rules of full runs", why)),
        }
        let why_not = if result.rules_cut_short { OVER } else { "the job failed" };
        match &result.conformance {
            Some(figures) => {
                checked.extend(figures.iter().map(|figure| (figure, first.as_str())));
            }
            None => {
                coverage.missing.push(Missing::new("first steps compared with 32-true", why_not))
            }
        }
        if let Some(path) = &result.path {
            checked.extend(path.checked.iter().map(|checked| (checked, first.as_str())));
        }
        // Sorts the comparisons by rule. The sort is stable, so the comparisons of one rule stay in
        // their order.
        checked.sort_by_key(|(checked, _)| checked.rule);
        for (checked, seeds) in &checked {
            match checked.result {
                Comparison::LeftOut => {
                    let missing = Missing::new(checked.rule.title(), checked.what.clone());
                    coverage.missing.push(missing);
                }
                _ => coverage.rows.push(Row::new(checked, seeds)),
            }
        }
        let judged =
            |checked: &Checked| matches!(checked.result, Comparison::Held | Comparison::Broken);
        let of = |all: &dyn Fn(&Checked) -> bool| -> usize {
            let rules: BTreeSet<Reason> =
                checked.iter().filter(|(c, _)| all(c)).map(|(c, _)| c.rule).collect();
            rules.len() + usize::from(result.judgement.is_some())
        };
        (coverage.rules, coverage.of_rules) = (of(&judged), of(&|_| true));
        coverage.ran.push(("metric", format!("{} over {}, {all}", model.metric, model.length)));
        if !model.changes.is_empty() {
            coverage.ran.push(("changed", model.changes.to_string()));
        }
        if let (true, Some(limit)) = (result.cut_short, report.time_limit_seconds) {
            coverage.missing.push(Missing::new(
                format!("seeds after the first {}", result.seeds.len()),
                format!("the time limit of {limit} s"),
            ));
        }
        if let (Some(plain), Some(watched)) =
            (result.peak_memory_bytes, result.watched_peak_memory_bytes)
        {
            let (plain, watched) = (show_bytes(plain), show_bytes(watched));
            let text = format!("at most {plain} in full runs, {watched} in short observed runs");
            coverage.ran.push(("memory", text));
        }
        match &result.path {
            Some(path) => coverage.path(report, path, &first),
            None => {
                let missing = Missing::new("the training path", why_not);
                coverage.missing.push(missing);
            }
        }
        coverage
            .missing
            .push(Missing::new("testing, prediction, other batch sizes, other data", ""));
        coverage
    }

    /// Returns the comparison whose measured value is largest relative to its bound, together with
    /// this ratio. Returns `None` if no comparison has a bound.
    pub fn closest(&self) -> Option<(&Row, f64)> {
        let shares = self.rows.iter().filter_map(|row| Some((row, row.share?)));
        shares.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn path(&mut self, report: &Report, path: &PathReport, seed: &str) {
        let PathReport { parameters, batch_size, batches_per_step, steps, replayed, .. } = path;
        let device = report.fingerprint.as_ref().map_or("an unknown device", |f| f.device.as_str());
        let graphs = match replayed {
            0 => "operator by operator".to_owned(),
            replayed => format!("{replayed} steps as a CUDA graph"),
        };
        let each = if *batches_per_step == 1 { "batch" } else { "batches" };
        self.ran.push((
            "path",
            format!(
                "Trainer::fit on {device}, {steps} steps of {batches_per_step} {each} of {batch_size}, \
                 {graphs}, {seed}"
            ),
        ));
        self.ran.push((
            "modes",
            "training, with dropout and batch statistics, and evaluation".to_owned(),
        ));
        self.ran.push(("size", format!("{parameters} parameters")));
        if path.followed < path.batches {
            self.missing.push(Missing::new(
                format!(
                    "the batches after the first {} of an epoch's {} batches",
                    path.followed, path.batches
                ),
                "",
            ));
        }
        if let Some(why) = &path.watched_by_itself {
            self.missing.push(Missing::new("clipping within the step", why));
        }
        let is_cpu = report.fingerprint.as_ref().is_some_and(|f| !f.capability.contains('.'));
        if *replayed == 0 {
            let note = path.notes.iter().find(|note| note.contains("CUDA graph"));
            let why = match note.or(path.watched_by_itself.as_ref()) {
                _ if is_cpu => "the device is a CPU",
                Some(why) => why.as_str(),
                None => "the trainer gives no reason",
            };
            self.missing.push(Missing::new("CUDA graphs", why));
        }
        if is_cpu {
            let what = "fused CUDA layers and CUDA optimizers";
            self.missing.push(Missing::new(what, "the device is a CPU"));
        }
    }
}

const METRIC: &str = "Validation metric";

/// Formats the statistical test over seeds as a comparison of a measured value with a bound. The
/// measured value is the upper confidence limit of how much worse the metric is than under 32-true.
/// The bound is the margin.
fn metric(model: &ModelReport, judgement: &Judgement, seeds: &str) -> Row {
    let is_share = model.direction.is_share();
    let shown = |value: f64| match is_share {
        true => format!("{} points", significant(100.0 * value, 2)),
        false => significant(value, 2),
    };
    let checked = Checked::at_most(
        Reason::DidNotLearn,
        "",
        "",
        Unit::Number,
        (judgement.upper.max(0.0), judgement.margin),
    );
    Row {
        rule: METRIC,
        compares: "compares the metric with that of 32-true with the same seeds",
        what: format!(
            "{}: how much worse than under 32-true (upper confidence limit, α = {})",
            model.metric, judgement.alpha
        ),
        over: format!("full runs, {}, {seeds}", model.length),
        figure: shown(judgement.upper),
        bound: shown(judgement.margin),
        share: checked.share(),
        result: match judgement.verdict {
            Verdict::Pass => Comparison::Held,
            Verdict::Fail => Comparison::Broken,
            Verdict::Inconclusive => Comparison::Open,
        },
    }
}

/// Formats seeds as `seed 42`, `seeds 42 to 45` or `seeds 1, 5`.
fn seeds(seeds: &[u64]) -> String {
    let follow = seeds.windows(2).all(|pair| pair[1] == pair[0] + 1);
    match seeds {
        [] => "no seed".to_owned(),
        [seed] => format!("seed {seed}"),
        [first, .., last] if follow && seeds.len() > 2 => format!("seeds {first} to {last}"),
        _ => {
            let all: Vec<String> = seeds.iter().map(ToString::to_string).collect();
            format!("seeds {}", all.join(", "))
        }
    }
}
