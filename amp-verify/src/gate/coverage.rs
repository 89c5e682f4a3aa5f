//! A description of what was checked for a model under a precision, and what was not.

use std::collections::BTreeMap;

use super::{
    path::{Checked, Examined},
    reason::Reason,
    report::{Cell, ModelReport, Report},
};

/// What was checked and what was not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Coverage {
    /// The path, modes, sizes and seeds, then each rule with its largest figure.
    pub checked: Vec<String>,
    /// What was not checked, each with the reason.
    pub missing: Vec<String>,
    /// The number of rules that were checked.
    pub rules: usize,
    /// The number of rules.
    pub of_rules: usize,
}

impl Coverage {
    /// The coverage of one cell of a report.
    pub fn of(report: &Report, model: &ModelReport, cell: &Cell) -> Self {
        let mut coverage = Self::default();
        let seeds: Vec<String> = cell.seeds.iter().map(ToString::to_string).collect();
        coverage.checked.push(format!(
            "metric: {} over {} epochs, seeds {}",
            model.metric,
            model.epochs,
            seeds.join(", ")
        ));
        match &cell.path {
            Some(path) => coverage.path(report, path, cell.seeds.first()),
            None => coverage.missing.push("the path that is trained on: the job failed".into()),
        }
        match &cell.conformance {
            Some(figures) => {
                let texts: Vec<String> = figures.iter().map(in_words).collect();
                coverage.checked.push(format!("first steps against 32-true: {}", texts.join("; ")));
            }
            None => coverage.missing.push("first steps against 32-true: the job failed".into()),
        }
        coverage.missing.push("testing, prediction, other batch sizes and other data".into());
        coverage
    }

    fn path(&mut self, report: &Report, path: &Examined, seed: Option<&u64>) {
        let Examined { parameters, batch_size, batches_per_step, steps, replayed, .. } = path;
        let seed = seed.map_or(String::new(), |seed| format!(", seed {seed}"));
        let device = report.fingerprint.as_ref().map_or("an unknown device", |f| f.device.as_str());
        let graphs = match replayed {
            0 => "operator by operator".to_owned(),
            replayed => format!("{replayed} of them as a CUDA graph"),
        };
        let each = if *batches_per_step == 1 { "batch" } else { "batches" };
        self.checked.push(format!(
            "path: Trainer::fit on {device}, {steps} steps of {batches_per_step} {each} of {batch_size}, \
             {graphs}{seed}"
        ));
        self.checked
            .push("modes: training, with dropout and batch statistics, and evaluation".into());
        self.checked.push(format!("size: {parameters} parameters"));
        let mut rules: BTreeMap<Reason, Vec<&Checked>> = BTreeMap::new();
        for checked in &path.checked {
            rules.entry(checked.rule).or_default().push(checked);
        }
        self.of_rules = rules.len();
        for (rule, all) in rules {
            let done: Vec<&&Checked> = all.iter().filter(|checked| checked.done).collect();
            if done.is_empty() {
                let why = all.first().map_or("", |checked| checked.about.as_str());
                self.missing.push(format!("{}: {why}", rule.name()));
                continue;
            }
            self.rules += 1;
            let texts: Vec<String> = done.iter().map(|checked| in_words(checked)).collect();
            self.checked.push(format!("{}: {}", rule.name(), texts.join("; ")));
        }
        if path.followed < path.batches {
            self.missing.push(format!(
                "rules after the first {} of an epoch's {} batches",
                path.followed, path.batches
            ));
        }
        if let Some(why) = &path.watched_by_itself {
            self.missing.push(format!("clipping within the step: {why}"));
        }
        let is_cpu = report.fingerprint.as_ref().is_some_and(|f| !f.capability.contains('.'));
        if *replayed == 0 {
            let note = path.notes.iter().find(|note| note.contains("CUDA graph"));
            let why = match note.or(path.watched_by_itself.as_ref()) {
                _ if is_cpu => "the device is a CPU",
                Some(why) => why.as_str(),
                None => "the trainer gives no reason",
            };
            self.missing.push(format!("CUDA graphs: {why}"));
        }
        if is_cpu {
            self.missing.push("fused CUDA layers and CUDA optimizers: the device is a CPU".into());
        }
    }
}

fn in_words(checked: &Checked) -> String {
    match (checked.figure, checked.bound) {
        (Some(figure), Some(bound)) => {
            format!("{} {figure:.1e} (at most {bound:.1e})", checked.about)
        }
        (Some(figure), None) => format!("{} {figure:.1e}", checked.about),
        _ => checked.about.clone(),
    }
}
