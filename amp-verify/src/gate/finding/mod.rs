//! Diagnoses why a precision failed the gate. Repeats the run of the first failing seed in this
//! process, first unchanged and then with some modules in FP32. [`crate::diagnose`] describes the
//! search.

mod words;

use amp_core::{Result, precision::Precision};
use serde::{Deserialize, Serialize};

use self::words::text;
use super::{
    Plan, Pool, goldens,
    job::{Job, Task},
    outcome::Outcome,
    reason::Reason,
    report::{ModelReport, PrecisionResult, Status},
    runs::learning,
};
use crate::{
    diagnose::{self, Attribution, Check, Diagnosis, Overrides, Scope, attribute_to_paste},
    faults::Fault,
    gate,
    layers::{self, Kind, Options, Subject, Wrap, module_paths},
};

/// Why a precision failed the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Training is not deterministic: a repeated run with the same seed gives other results.
    Nondeterministic,
    /// The environment has changed: 32-true gives other results than its golden (the recorded
    /// results of an earlier run).
    Environment,
    /// A rule of training is broken, for example gradient clipping. No choice of precision can
    /// repair this.
    Rule,
    /// 32-true fails as well, so the precision is not the cause.
    Baseline,
    /// The precision fails again when the run is repeated, and 32-true passes.
    Precision,
    /// The diagnosis has found no cause.
    Unknown,
}

/// The diagnosis of one failing combination of model and precision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The seed whose failing run was repeated.
    pub seed: u64,
    /// Why the precision failed.
    pub cause: Cause,
    /// A number for how badly the run of this seed failed. If the metric is too much worse than
    /// under 32-true, it is their difference divided by the margin. If rules are broken, it is the
    /// number of broken rules plus 1. Null if it is not finite, or if the cause is `rule`.
    pub figure: Option<f64>,
    /// The path of the suspected layer: the first layer whose own error exceeds the bound for
    /// rounding errors, or else the layer with the largest own error. (To measure the own error of
    /// its output, each layer runs on inputs computed in 64-true.) Null if the cause is not
    /// `precision`, or if the errors were not measured.
    pub layer: Option<String>,
    /// The own error of `layer`, divided by the root mean square of its exact output. Null if it is
    /// not finite.
    pub layer_error: Option<f64>,
    /// Whether the own error of `layer` exceeds the bound for rounding errors.
    #[serde(default)]
    pub is_beyond: bool,
    /// The paths of the modules that must stay in FP32. With these modules in FP32 the run passes.
    /// Empty if FP32 does not help.
    pub modules: Vec<String>,
    /// Whether the search has shown that every module in `modules` is needed: the run fails if any
    /// one of them is not in FP32.
    pub one_minimal: bool,
    /// How many sets of modules the search tested.
    pub tests: usize,
    /// The fields of the model's struct that contain the modules in `modules`.
    pub fields: Vec<String>,
    /// The lines to paste into the model's struct: the attribute `#[precision(fp32)]` and the name
    /// of each field in `fields`. Empty if FP32 does not help.
    pub attribute: String,
    /// The whole diagnosis, in one line.
    pub text: String,
}

/// Diagnoses the failing combinations of model and precision, at most as many as the plan allows.
/// Returns the number of failures that were not diagnosed. If `is_over` is true, the time limit has
/// passed: nothing is trained, and only broken rules are diagnosed.
pub(super) fn find(plan: &Plan, pool: &Pool, reports: &mut [ModelReport], is_over: bool) -> usize {
    let mut open = if is_over { 0 } else { plan.diagnosed };
    let mut more = 0;
    for (model, report) in plan.models.iter().zip(reports) {
        for result in &mut report.results {
            if let Some(finding) = rule(plan, result) {
                result.finding = Some(finding);
                continue;
            }
            let Some(suspect) = Suspect::of(plan, pool, model, result) else { continue };
            if open == 0 {
                more += usize::from(plan.diagnosed > 0);
                continue;
            }
            open -= 1;
            pool.join();
            result.finding = Some(suspect.finding());
        }
    }
    more
}

/// Returns the diagnosis of a model that breaks rules of training under a precision: a list of the
/// broken rules, each with its failure. No run is needed for this.
fn rule(plan: &Plan, result: &PrecisionResult) -> Option<Finding> {
    let broken: Vec<String> = result
        .failures
        .iter()
        .filter_map(|failure| Some(format!("{} ({})", failure.reason.rule()?, failure.text)))
        .collect();
    if broken.is_empty() || plan.diagnosed == 0 {
        return None;
    }
    let text = format!(
        "rule: {}; look for the mistake in the code, because FP32 layers cannot repair it",
        broken.join("; ")
    );
    Some(Finding { cause: Cause::Rule, text, ..Finding::of(plan.first_seed, None) })
}

impl Finding {
    /// Creates a diagnosis with the given `seed` and `figure`, the cause `Unknown` and nothing
    /// else.
    fn of(seed: u64, figure: Option<f64>) -> Self {
        Self {
            seed,
            cause: Cause::Unknown,
            figure,
            layer: None,
            layer_error: None,
            is_beyond: false,
            modules: Vec::new(),
            one_minimal: false,
            tests: 0,
            fields: Vec::new(),
            attribute: String::new(),
            text: String::new(),
        }
    }
}

/// A failing combination of model and precision, and what is known about its failure.
struct Suspect<'a> {
    plan: &'a Plan,
    model: &'a gate::Subject,
    precision: Precision,
    /// The seed whose run is repeated.
    seed: u64,
    /// The metric of 32-true with this seed. `None` unless the precision failed because its metric
    /// is worse than this one by more than the margin.
    baseline: Option<f64>,
    /// Whether the first steps differ from those of 32-true by more than is accepted.
    steps: bool,
    /// Whether a rule was broken in the steps that the gate observed.
    in_training: bool,
    /// Whether 32-true failed as well.
    baseline_fails: bool,
    /// Whether the results of 32-true differ from its golden (the recorded results). `None` if they
    /// cannot be compared.
    baseline_moved: Option<bool>,
    /// A number for how badly the run failed, see [`Finding::figure`]. It is above 1 if the metric
    /// is too much worse or a rule is broken.
    known: f64,
    /// The outcome of the gate's full training run with this seed. `None` if there was no such run.
    recorded: Option<Outcome>,
}

impl<'a> Suspect<'a> {
    /// Collects what is known about the failure of a model under a precision. Returns `None` if the
    /// model did not fail, or if the precision cannot be the cause.
    fn of(
        plan: &'a Plan,
        pool: &Pool,
        model: &'a gate::Subject,
        result: &PrecisionResult,
    ) -> Option<Self> {
        use Reason::{
            AllSkipped, Buffers, DidNotLearn, Gradient, Moved, NonFinite, NotConformant, Rounding,
        };
        let ours =
            [AllSkipped, Buffers, DidNotLearn, Gradient, Moved, NonFinite, NotConformant, Rounding];
        let other = result.failures.iter().any(|failure| !ours.contains(&failure.reason));
        if result.status != Status::Regression || other {
            return None;
        }
        let precision = result.precision;
        let outcome = |precision, seed, task| pool.outcome(&plan.job(model, precision, seed, task));
        let untrained = plan.untrained(pool, model);
        let all = |precision| -> Option<Vec<Outcome>> {
            let seeds = result.seeds.iter();
            seeds.map(|seed| outcome(precision, *seed, Task::Train).cloned()).collect()
        };
        let (baseline, own) = (all(Precision::F32True)?, all(precision)?);
        let broken = baseline.iter().any(|outcome| !outcome.failures.is_empty());
        let learns_not = || learning(model, &untrained, &baseline, "").1.is_some();
        let baseline_fails = broken || (!baseline.is_empty() && learns_not());
        let baseline_moved = plan.goldens.as_ref().and_then(|folder| {
            let case = goldens::Case {
                model: model.name,
                length: plan.length(model),
                is_changed: !plan.changes.is_empty(),
                seed: plan.first_seed,
                precision,
            };
            case.baseline_moved(folder, baseline.first()?, own.first()?)
        });
        let first_steps = outcome(precision, plan.first_seed, Task::Conformance)?;
        let steps = !first_steps.failures.is_empty();
        let path = outcome(precision, plan.first_seed, Task::Path)?;
        let in_training = !path.failures.is_empty();
        let lost = |at: usize| Some(of_training(model, &own[at], baseline[at].metric?));
        let losing = (0..own.len()).find(|at| lost(*at).is_some_and(|figure| figure > 1.0));
        let at = losing.unwrap_or(0);
        let known = f64::max(
            losing.and_then(lost).unwrap_or(0.0),
            of_steps(first_steps).max(of_steps(path)),
        );
        Some(Self {
            plan,
            model,
            precision,
            // With a time limit, a rule may fail before any full training run. `seeds` is then
            // empty, and the diagnosis uses the plan's first seed.
            seed: result.seeds.get(at).copied().unwrap_or(plan.first_seed),
            baseline: losing.and_then(|at| baseline[at].metric),
            steps,
            in_training,
            baseline_fails,
            baseline_moved,
            known,
            recorded: own.get(at).cloned(),
        })
    }

    fn finding(&self) -> Finding {
        let known = Some(self.known).filter(|figure| figure.is_finite());
        let mut finding = Finding { cause: Cause::Baseline, ..Finding::of(self.seed, known) };
        let failed = match self.baseline_fails {
            true => None,
            false => self.search(&mut finding).err(),
        };
        finding.text = text(&finding, self.known > 1.0);
        // If the diagnosis itself ends with an error, this error becomes part of its text. It does
        // not change whether the model has passed the gate under this precision.
        if let Some(error) = failed {
            finding.cause = Cause::Unknown;
            let error = error.to_string();
            finding.text = text(&finding, false) + error.lines().next().unwrap_or_default();
        }
        finding
    }

    fn search(&self, finding: &mut Finding) -> Result<()> {
        let job = self.plan.job(self.model, self.precision, self.seed, Task::Train);
        let registry = &self.plan.registry;
        let case = job.case(registry, self.precision)?;
        let build = || case.build();
        let wrap: &Wrap<'_> = &|model| job.with_fault(model, self.precision);
        let batch = case.data.train.head(case.data.batch_size)?;
        let overrides = &self.plan.overrides;
        let subject = Subject::new(&case, &build, &batch).wrapped(wrap);
        let (layers, modules) = module_paths(&subject)?;
        // If the layers cannot be measured in 64-true, the diagnosis continues without a suspected
        // layer. The search below still finds modules that must stay in FP32.
        let planted = Fault::planted(self.plan.fault, self.precision, self.model.planted_layer());
        let audited = layers::audit(&subject, Options::new(self.precision));
        drop(planted);
        let (measured, suspect) = match audited {
            Ok((report, own)) => {
                let beyond = own.iter().find(|own| own.is_beyond());
                (Some(report), beyond.map(|own| own.path.clone()))
            }
            Err(_) => (None, None),
        };
        let scope = Scope {
            overrides,
            layers,
            modules,
            baseline_moved: self.baseline_moved,
            // Fused layers are not compared here: the gate's rule `fusion` has already checked
            // them.
            groups: Vec::new(),
            suspect: suspect.clone(),
        };
        let mut check = Again { suspect: self, known: Some(self.known) };
        let Diagnosis { attribution, fix, .. } = diagnose::diagnose(&mut check, &scope)?;
        finding.cause = match attribution {
            Attribution::Environment => Cause::Environment,
            Attribution::Determinism { .. } => Cause::Nondeterministic,
            Attribution::Precision | Attribution::Fusion { .. } => Cause::Precision,
            // The repeated run passes. If 32-true differs from its golden (the recorded results),
            // the cause is the environment. If the repeated run has the same results as before, the
            // precision has failed the comparison with its own golden, or `--equivalence`. If its
            // results are different, training is not deterministic.
            Attribution::Passes if self.baseline_moved == Some(true) => Cause::Environment,
            Attribution::Passes if self.repeats(&job) => Cause::Precision,
            Attribution::Passes => Cause::Nondeterministic,
        };
        if finding.cause != Cause::Precision {
            return Ok(());
        }
        // Names the first layer whose own error exceeds the bound for rounding errors, or else the
        // layer with the largest own error.
        if let Some(report) = measured {
            let beyond = report.layers.iter().find(|layer| Some(&layer.path) == suspect.as_ref());
            if let Some(layer) = beyond.or_else(|| report.worst(Kind::Forward)) {
                let error = layer.forward.relative_local_error();
                finding.layer = Some(layer.path.clone());
                finding.layer_error = Some(error).filter(|error| error.is_finite());
                finding.is_beyond = beyond.is_some();
            }
        }
        if let Some(fix) = fix {
            finding.attribute = attribute_to_paste(&fix.fields);
            finding.modules = fix.modules;
            finding.fields = fix.fields;
            finding.one_minimal = fix.is_one_minimal;
            finding.tests = fix.tests;
        }
        Ok(())
    }
}

impl Suspect<'_> {
    /// Repeats the gate's training run `job`. Returns whether the results are the same as before.
    fn repeats(&self, job: &Job) -> bool {
        let again = |recorded| figures(&job.execute(&self.plan.registry)) == figures(recorded);
        self.recorded.as_ref().is_some_and(again)
    }
}

/// Repeats the failing runs of the seed, each time with another set of modules in FP32.
struct Again<'a> {
    suspect: &'a Suspect<'a>,
    /// A number for how badly the run failed in the gate, see [`Finding::figure`]. The first check,
    /// which would only repeat that run, takes and returns this number instead.
    known: Option<f64>,
}

impl Check for Again<'_> {
    fn describe(&self) -> String {
        format!("seed {}, in multiples of the accepted difference", self.suspect.seed)
    }

    fn run(&mut self, overrides: &Overrides) -> Result<diagnose::Outcome> {
        if let Some(known) = self.known.take() {
            return Ok(diagnose::Outcome::new(known, 1.0));
        }
        let Suspect { plan, model, precision, seed, baseline, steps, in_training, .. } =
            *self.suspect;
        let run = |seed: u64, task: Task| {
            let mut job = plan.job(model, precision, seed, task);
            job.overrides = overrides.clone();
            job.execute(&plan.registry)
        };
        let mut figure = 0.0;
        if let Some(baseline) = baseline {
            figure = of_training(model, &run(seed, Task::Train), baseline);
        }
        if steps && figure <= 1.0 {
            figure = of_steps(&run(plan.first_seed, Task::Conformance)).max(figure);
        }
        if in_training && figure <= 1.0 {
            figure = of_steps(&run(plan.first_seed, Task::Path)).max(figure);
        }
        Ok(diagnose::Outcome::new(figure, 1.0))
    }
}

/// Returns how much worse the metric is than the metric of 32-true, divided by the margin. Returns
/// infinity if the run failed.
fn of_training(model: &gate::Subject, outcome: &Outcome, baseline: f64) -> f64 {
    match outcome.metric {
        Some(metric) if outcome.failures.is_empty() => {
            model.judge.direction.regression(baseline, metric) / model.margin
        }
        _ => f64::INFINITY,
    }
}

/// Returns how badly a job that checks rules failed: the number of broken rules plus one, or 0 if
/// no rule is broken.
fn of_steps(outcome: &Outcome) -> f64 {
    match outcome.failures.len() {
        0 => 0.0,
        broken => 1.0 + broken as f64,
    }
}

/// Returns the results of a run that must be the same when the run is repeated with the same seed.
fn figures(outcome: &Outcome) -> (Option<f64>, Option<f64>, u64, Option<f64>) {
    (outcome.metric, outcome.loss, outcome.skipped_steps, outcome.final_scale)
}
