//! Checks the training path of users, rule by rule. `Trainer::fit` runs as it does for a user: in
//! training mode, with CUDA graphs, fused layers, clipping within the step and the fused optimizer
//! if it can use them. The gate compares its final state. A second run is observed in each step and
//! must end with the same bits, so that the checks of its steps hold for the first run as well.

mod bounds;
mod device;
mod dropout;
mod final_state;
mod fusion;
mod observer;
mod reference;
mod replay;
mod report;
mod rounding;
mod rule;
mod rules;
mod run;
mod validation;

pub use report::PathReport;

use amp_core::{Result, nn, precision::Precision, trainer::StepAccess};

use self::{
    bounds::Judged,
    final_state::FinalState,
    observer::Observation,
    reference::{Reference, larger},
    report::RULES,
    run::{HIGH_SCALE, LOW_SCALE, STEPS, Scenario, Setup},
};
use super::{
    checked::{Checked, Findings, Unit},
    job::{Job, Outcome},
    reason::{Failure, Reason},
    stages::Stages,
};
use crate::{faults::Fault, registry::Registry, text::percent};

/// The accepted difference of batch statistics and of a validation loss from 32-true's, by the
/// dtype of the computation. Rounding alone causes a few hundredths of this.
fn statistics_bound(precision: Precision) -> f64 {
    match precision {
        Precision::F64True | Precision::F32True => 1e-3,
        Precision::F16Mixed | Precision::F16True => 0.01,
        Precision::Bf16Mixed | Precision::Bf16True => 0.03,
    }
}

/// Runs the job.
pub(super) fn run(job: &Job, registry: &Registry) -> Result<Outcome> {
    let case = job.case(registry, job.precision)?;
    let setup = Setup { job, case: &case, precision: job.precision };
    let mut outcome = Outcome::failed(Failure::new(Reason::Crashed, ""));
    outcome.failures.clear();
    let mut findings = Findings::default();
    let mut report = PathReport::default();
    if setup.job.model(&case, job.precision)?.optimizes_manually() {
        for rule in RULES {
            findings.left_out(*rule, "the model optimizes manually: its steps cannot be observed");
        }
    } else {
        Checks { setup: &setup, findings: &mut findings, report: &mut report }.run()?;
    }
    outcome.failures = findings.failures;
    outcome.path = Some(PathReport { checked: findings.checked, ..report });
    Ok(outcome)
}

struct Checks<'a> {
    setup: &'a Setup<'a>,
    findings: &'a mut Findings,
    report: &'a mut PathReport,
}

impl Checks<'_> {
    fn run(&mut self) -> Result<()> {
        let mut stages = Stages::new(self.setup.job);
        let (plain, model) = self.setup.plain_with_model(Scenario::Epoch)?;
        if !run::all_finite(model.as_ref())? {
            self.findings.fail(Reason::NonFinite, "a weight is not finite after an epoch");
        }
        self.describe(&plain)?;
        self.batches(&plain)?;
        self.memory(&plain);
        stages.end("a plain epoch");
        device::check(self.setup, self.findings)?;
        stages.end("the device compared with the CPU");
        rounding::check(self.setup, self.findings)?;
        stages.end("each layer alone");
        fusion::check(self.setup, self.findings)?;
        stages.end("fused layers");
        let (observed, observation, observed_model) = self.setup.observed(Scenario::Epoch)?;
        let steps = observation.applied;
        let what = format!("an epoch, {steps} steps");
        self.same(Scenario::Epoch, &what, &plain, &observed)?;
        self.followed(&what, &observation);
        self.gradients(&observation, observed_model.as_ref())?;
        stages.end("an observed epoch");
        let limit = median(&observation.norms[..observation.norms.len().min(STEPS as usize)]);
        if let Some(reference) = observation.reference {
            validation::check(self.setup, self.findings, &plain, model, reference)?;
        }
        stages.end("validation");
        self.clipped(limit)?;
        stages.end("clipped steps and resuming");
        if self.setup.precision.scales_loss() {
            self.overflowing()?;
            stages.end("overflowing steps");
        } else {
            self.findings.left_out(Reason::Scale, "the precision does not scale the loss");
            self.findings.left_out(Reason::Skip, "without a loss scale nothing overflows");
        }
        Ok(())
    }

    /// Records the properties of the unobserved epoch.
    fn describe(&mut self, plain: &FinalState) -> Result<()> {
        let (case, record) = (self.setup.case, &plain.record);
        let loader = case.data.train_loader(case.trainer.policy(), 0)?;
        *self.report = PathReport {
            parameters: record.start.run.parameters,
            batch_size: case.data.batch_size,
            batches_per_step: case.trainer.optimization.accumulate_grad_batches,
            batches: loader.batches(),
            followed: plain.counts.batches,
            steps: record.end.global_step,
            replayed: record.end.replayed,
            watched_by_itself: match case.build()?.step_access() {
                StepAccess::InStep(why) => Some(why.to_owned()),
                _ => None,
            },
            notes: record.notes.clone(),
            checked: Vec::new(),
        };
        Ok(())
    }

    /// Checks that an epoch uses all its batches, in steps of the requested number of batches.
    fn batches(&mut self, plain: &FinalState) -> Result<()> {
        let config = self.setup.config(Scenario::Epoch)?;
        let (batches, window) =
            (self.setup.batches(&config)?, config.optimization.accumulate_grad_batches);
        let steps = (batches + window - 1) / window;
        let counts = &plain.counts;
        let is_other = (counts.batches, counts.attempts) != (batches, steps);
        let wrong = is_other.then(|| {
            format!(
                "an epoch of {batches} batches, {window} for each step, took {} batches in {} steps",
                counts.batches, counts.attempts
            )
        });
        let over = format!("plain run, an epoch: {batches} batches in {steps} steps");
        self.findings.equal(Reason::Batches, "batches and steps", over, wrong);
        Ok(())
    }

    /// Checks that steps do not leak memory.
    fn memory(&mut self, plain: &FinalState) {
        let held = &plain.counts.held;
        // The first steps allocate the optimizer's state, workspaces of libraries and a CUDA graph.
        let Some(later) = held.get(6..).filter(|later| later.len() >= 4) else {
            self.findings.left_out(Reason::Memory, "the epoch has too few steps");
            return;
        };
        let (first, second) = later.split_at(later.len() / 2);
        let least = |held: &[i64]| held.iter().copied().min().unwrap_or_default();
        let grown = (least(second) - least(first)).max(0);
        self.findings.measured(
            Reason::Memory,
            "smallest memory of later steps, minus that of earlier steps",
            &format!("plain run, the last {} steps", second.len()),
            Unit::Bytes,
            (grown as f64, 0.0),
        );
    }

    /// Runs with effective clipping, independently of the model's own limit, and runs that are
    /// saved and resumed.
    fn clipped(&mut self, limit: f64) -> Result<()> {
        if !(limit > 0.0 && limit.is_finite()) {
            self.findings
                .left_out(Reason::Resume, "the gradients have no usable norm for clipping");
            return Ok(());
        }
        let scenario = Scenario::Clipped(limit);
        let what = format!("{STEPS} steps clipped to a norm of {limit:.3}");
        let plain = self.setup.plain(scenario)?;
        let (observed, observation, _) = self.setup.observed(scenario)?;
        self.same(scenario, &what, &plain, &observed)?;
        self.followed(&what, &observation);
        self.resume(scenario, &plain)
    }

    /// Runs with a scale that overflows, falls and grows.
    fn overflowing(&mut self) -> Result<()> {
        let plain = self.setup.plain(Scenario::Overflowing)?;
        let (observed, observation, model) = self.setup.observed(Scenario::Overflowing)?;
        let what = format!(
            "{} applied and {} skipped steps from a scale of 2^{}",
            observation.applied,
            observation.skipped,
            HIGH_SCALE.log2()
        );
        self.same(Scenario::Overflowing, &what, &plain, &observed)?;
        self.followed(&what, &observation);
        // Precision regions by path may replace f16 everywhere.
        if observation.skipped == 0 && self.setup.job.overrides.is_empty() {
            self.findings.fail(Reason::Skip, "no step was skipped although the scale overflows");
        }
        if !run::all_finite(model.as_ref())? {
            self.findings.fail(Reason::NonFinite, "a weight is not finite after an overflow");
        }
        let moves = observation.scale.map_or((0, 0), |rule| (rule.grown, rule.backed_off));
        let over = format!("{what}: grew {} times, fell {} times", moves.0, moves.1);
        self.said(Reason::Scale, "the scale after each step", over);
        self.said(Reason::Skip, "which steps are skipped, and what skipped steps change", what);
        Ok(())
    }

    /// Compares the unobserved run with the observed one.
    fn same(
        &mut self,
        scenario: Scenario,
        what: &str,
        plain: &FinalState,
        observed: &FinalState,
    ) -> Result<()> {
        let tolerance = self.tolerance(scenario, plain, observed)?;
        let mut difference = plain.difference(observed, tolerance)?;
        if difference.is_none() && tolerance == 0.0 {
            difference = plain.logged_difference(observed);
        }
        let wrong = difference.map(|difference| {
            format!(
                "{what}: the unobserved run ends with other values than the observed run of the same steps: \
                 {difference}"
            )
        });
        let how = match tolerance == 0.0 {
            true => "to the bit".to_owned(),
            false => {
                format!("within {}, because the device is not reproducible", percent(tolerance))
            }
        };
        let compared = format!("weights, optimizer state, scale and logs, {how}");
        self.findings.equal(Reason::Watching, compared, what, wrong);
        Ok(())
    }

    /// Returns 0, unless two equal runs differ, as on a GPU.
    fn tolerance(&self, scenario: Scenario, plain: &FinalState, other: &FinalState) -> Result<f64> {
        let is_cuda = self.setup.case.trainer.device.is_cuda();
        if !is_cuda || plain.difference(other, 0.0)?.is_none() {
            return Ok(0.0);
        }
        let again = self.setup.plain(scenario)?;
        Ok(if plain.difference(&again, 0.0)?.is_some() { 0.05 } else { 0.0 })
    }

    /// Records a rule of equal values, whose violation was already reported.
    fn said(&mut self, rule: Reason, what: &str, over: impl Into<String>) {
        let is_held = self.findings.failures.iter().all(|failure| failure.reason != rule);
        self.findings.checked.push(Checked::equal(rule, what, over, is_held));
    }

    /// Records the results of the observed steps.
    fn followed(&mut self, what: &str, observation: &Observation) {
        for Failure { reason, text, .. } in &observation.failures {
            self.findings.fail(*reason, format!("{what}: {text}"));
        }
        match (&observation.no_replay, &observation.replay) {
            (Some(why), _) => {
                self.findings.left_out(Reason::Update, &format!("no replay in float64: {why}"));
            }
            (None, Some(replay)) => {
                let clipped = match replay.clipped {
                    0 => String::new(),
                    steps => format!(", clipped in {steps}"),
                };
                self.findings.measured(
                    Reason::Update,
                    "distance from float64 over what rounding explains",
                    &format!("{what}{clipped}"),
                    Unit::Number,
                    (replay.worst, 1.0),
                );
                self.said(Reason::Schedule, "the rates of all groups", what);
            }
            (None, None) => {}
        }
    }

    /// Whether the model's attention may drop other elements than in 32-true. On CUDA the kernels
    /// for 16 and for 32 bits draw their masks in different orders.
    fn masks_differ(&self, reference: &Reference, model: &dyn amp_core::LightningModule) -> bool {
        let attends = |name: &str| name.ends_with("in_proj_weight");
        self.setup.case.trainer.device.is_cuda()
            && reference.draws
            && nn::parameters(model).iter().any(|parameter| attends(&parameter.name))
    }

    /// Compares each step's gradient, and the buffers, with 32-true's.
    fn gradients(
        &mut self,
        observation: &Observation,
        model: &dyn amp_core::LightningModule,
    ) -> Result<()> {
        let Some(reference) = &observation.reference else { return Ok(()) };
        match reference.dropout.found() {
            (0, ..) if reference.draws => {
                let why = "elements are dropped within other layers, where they cannot be counted";
                self.findings.left_out(Reason::Dropout, why);
            }
            (0, ..) => self.findings.left_out(Reason::Dropout, "the model drops nothing"),
            (layers, away, wrong) => {
                if let Some(text) = wrong {
                    self.findings.fail(Reason::Dropout, text);
                }
                let over = format!("the first batch, {layers} layers");
                let figure = (away, dropout::CHANCE);
                self.findings.measured(
                    Reason::Dropout,
                    "difference between the dropped share and the rate",
                    &over,
                    Unit::StandardErrors,
                    figure,
                );
            }
        }
        let over = format!("an epoch, {} steps", reference.steps.len());
        let masks_differ = self.masks_differ(reference, model);
        if masks_differ {
            let why = "attention drops elements by a mask of its kernel's own on CUDA, which 32-true's \
                       kernel does not repeat: its gradient is shown and not judged";
            self.findings.left_out(Reason::Gradient, why);
        }
        let steps = &reference.steps;
        let judged = Judged::new(steps, self.setup.precision);
        let error = steps.iter().map(|step| step.found.error).fold(0.0, larger);
        for (what, (figure, bound)) in [
            ("length along 32-true's gradient, away from 1", judged.projection),
            ("the same of one parameter's gradient", judged.parameter),
            ("distance from 32-true's gradient", (error, f64::INFINITY)),
            ("the loss, away from 32-true's", judged.loss),
        ] {
            let figure = (figure, if masks_differ { f64::INFINITY } else { bound });
            self.findings.measured(Reason::Gradient, what, &over, Unit::Share, figure);
        }
        let bound = statistics_bound(self.setup.precision);
        if let Some((name, away)) = reference.buffers(model)? {
            self.findings.measured(
                Reason::Buffers,
                format!("away from 32-true's, most in `{name}`"),
                &format!("at the end of {over}"),
                Unit::Share,
                (away, bound),
            );
        } else {
            self.findings.left_out(Reason::Buffers, "the model has none");
        }
        Ok(())
    }

    /// Saves a run half way and continues it in a new model.
    fn resume(&mut self, scenario: Scenario, plain: &FinalState) -> Result<()> {
        let folder = run::folder()?;
        let path = folder.path().join("half.safetensors");
        let whole = self.setup.saved(scenario, STEPS / 2, &path)?;
        let resumed = self.setup.resumed(scenario, &path, STEPS / 2)?;
        let is_cuda = self.setup.case.trainer.device.is_cuda();
        for (what, state) in
            [("a run that was saved half way", &whole), ("a resumed run", &resumed)]
        {
            let tolerance = if is_cuda { self.tolerance(scenario, plain, state)? } else { 0.0 };
            let difference = match Fault::loses_state(self.setup.job.fault) {
                // The counters of this run start again at zero.
                true => plain.tensors_differ(state, tolerance)?,
                false => plain.difference(state, tolerance)?,
            };
            let wrong = difference.map(|difference| {
                format!("{what} differs from an uninterrupted run: {difference}")
            });
            let compared = format!("{what}: weights, optimizer state, schedules, scale");
            let half = STEPS / 2;
            let over = format!("saved after {half} of {STEPS} steps at a scale of {LOW_SCALE}");
            self.findings.equal(Reason::Resume, compared, over, wrong);
        }
        Ok(())
    }
}

/// Returns the median, or 0 without values.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
