//! Checks, rule by rule, the training path that users run. A first run calls `Trainer::fit` as a
//! user does: in training mode, with CUDA graphs, fused layers, clipping within the step and the
//! fused optimizer where the trainer can use them. A second run is observed in each step, and the
//! steps are checked. The two runs must end with the same bits, so that the checks of the second
//! run hold for the first one as well.

mod between;
mod bounds;
mod compared;
mod device;
mod dropout;
mod final_state;
mod fusion;
mod observer;
mod reference;
mod replay;
mod report;
mod resume;
mod rounding;
mod rule;
mod rules;
mod run;
mod tolerance;
mod unjudged;
mod validation;

pub use report::PathReport;

use amp_core::{Result, probe::Observed, trainer::StepAccess};

use self::{
    bounds::{Judged, statistics_bound},
    compared::larger,
    final_state::FinalState,
    observer::Observation,
    report::RULES,
    run::{HIGH_SCALE, STEPS, Scenario, Setup},
    tolerance::Tolerance,
    unjudged::{STAGES, unjudged},
};
use super::{
    budget::Budget,
    checked::{Checked, Findings, Unit},
    deadline::Deadline,
    identity,
    job::Job,
    outcome::Outcome,
    reason::{Failure, Reason},
    stages::Stages,
};
use crate::registry::Registry;

/// Runs the gate's job that checks the training path.
pub(super) fn run(job: &Job, registry: &Registry, deadline: &Deadline) -> Result<Outcome> {
    let case = job.case(registry, job.precision)?;
    let budget = Budget::of(&case, STEPS)?;
    let setup = Setup { job, case: &case, precision: job.precision, budget, deadline };
    let mut outcome = Outcome::failed(Failure::new(Reason::Crashed, ""));
    outcome.failures.clear();
    let mut findings = Findings::default();
    let mut report = PathReport::default();
    if setup.job.model(&case, job.precision)?.optimizes_manually() {
        for rule in RULES {
            findings.left_out(*rule, "the model optimizes manually: its steps cannot be observed");
        }
    } else {
        let (findings, report) = (&mut findings, &mut report);
        let observed = &mut outcome.observed;
        let mut checks =
            Checks { setup: &setup, findings, report, observed, ended: 0, tolerances: Vec::new() };
        let result = checks.run();
        outcome.ended = deadline.has_ended();
        match outcome.ended {
            true => unjudged(&setup, checks.ended, checks.findings),
            false => result?,
        }
    }
    outcome.failures = findings.failures;
    outcome.path = Some(PathReport { checked: findings.checked, ..report });
    Ok(outcome)
}

struct Checks<'a> {
    setup: &'a Setup<'a>,
    findings: &'a mut Findings,
    report: &'a mut PathReport,
    /// The dtypes that the first step of the run without an observer used.
    observed: &'a mut Observed,
    /// The number of stages of the job that have ended.
    ended: usize,
    /// How far two runs of a scenario may differ, for each scenario whose run was repeated to find
    /// out.
    tolerances: Vec<(Scenario, Tolerance)>,
}

impl<'a> Checks<'a> {
    /// Ends a stage of the job. Returns an error if the deadline has passed and there is a further
    /// stage.
    fn end(&mut self, stages: &mut Stages<'a>) -> Result<()> {
        stages.end(STAGES[self.ended].name);
        self.ended += 1;
        if self.ended < STAGES.len() { self.setup.deadline.check() } else { Ok(()) }
    }

    fn run(&mut self) -> Result<()> {
        let mut stages = Stages::new(self.setup.job);
        let (plain, model) = self.setup.plain_with_model(Scenario::Epoch)?;
        if !identity::is_finite(model.as_ref())? {
            self.findings.fail(Reason::NonFinite, "a weight is not finite after an epoch");
        }
        self.describe(&plain)?;
        self.batches(&plain)?;
        self.memory(&plain)?;
        self.end(&mut stages)?;
        device::check(self.setup, self.findings)?;
        self.end(&mut stages)?;
        rounding::check(self.setup, self.findings)?;
        self.end(&mut stages)?;
        fusion::check(self.setup, self.findings)?;
        self.end(&mut stages)?;
        let (observed, observation, _) = self.setup.observed(Scenario::Epoch)?;
        let steps = observation.applied;
        let what = format!("an epoch, {steps} steps");
        self.same(Scenario::Epoch, &what, &plain, &observed)?;
        self.followed(&what, &observation);
        self.gradients(&observation)?;
        self.end(&mut stages)?;
        let limit = median(&observation.norms[..observation.norms.len().min(STEPS as usize)]);
        if let Some(reference) = observation.reference {
            validation::check(self.setup, self.findings, &plain, model, reference)?;
        }
        self.end(&mut stages)?;
        self.clipped(limit)?;
        self.end(&mut stages)?;
        if self.setup.precision.scales_loss() {
            self.overflowing()?;
        } else {
            self.findings.left_out(Reason::Scale, "the precision does not scale the loss");
            self.findings.left_out(Reason::Skip, "without a loss scale, no step overflows");
        }
        self.end(&mut stages)
    }

    /// Writes the properties of the run without an observer into the report.
    fn describe(&mut self, plain: &FinalState) -> Result<()> {
        let (case, record) = (self.setup.case, &plain.record);
        *self.observed = record.observed.clone();
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

    /// Checks that an epoch uses all its batches, and that its steps have the requested number of
    /// batches.
    fn batches(&mut self, plain: &FinalState) -> Result<()> {
        let config = self.setup.config(Scenario::Epoch)?;
        let (batches, window) =
            (self.setup.batches(&config)?, config.optimization.accumulate_grad_batches);
        let steps = (batches + window - 1) / window;
        let counts = &plain.counts;
        let is_other = (counts.batches, counts.attempts) != (batches, steps);
        let wrong = is_other.then(|| {
            format!(
                "an epoch of {batches} batches, {window} per step, ran {} batches in {} steps",
                counts.batches, counts.attempts
            )
        });
        let over = format!("unobserved run, an epoch: {batches} batches in {steps} steps");
        self.findings.equal(Reason::Batches, "batches and steps", over, wrong);
        Ok(())
    }

    /// Checks that training steps do not leak memory.
    fn memory(&mut self, plain: &FinalState) -> Result<()> {
        let held = &plain.counts.held;
        // The first six steps are left out, because they allocate the optimizer's state, workspaces
        // of libraries and a CUDA graph.
        let Some(later) = held.get(6..).filter(|later| later.len() >= 4) else {
            self.findings.left_out(Reason::Memory, "the epoch has too few steps to show a leak");
            return Ok(());
        };
        let (first, second) = later.split_at(later.len() / 2);
        let least = |held: &[i64]| held.iter().copied().min().unwrap_or_default();
        let figure = (least(second) - least(first)).max(0) as f64;
        let what = "smallest memory in the second half of the steps, minus that in the first half";
        let over = format!("unobserved run, the last {} steps", later.len());
        let figure = (figure, self.setup.varying_bytes(Scenario::Epoch)? as f64);
        self.findings.measured(Reason::Memory, what, &over, Unit::Bytes, figure);
        Ok(())
    }

    /// Checks runs with a high loss scale: steps overflow, and the loss scale falls and grows.
    fn overflowing(&mut self) -> Result<()> {
        let plain = self.setup.plain(Scenario::Overflowing)?;
        let (observed, observation, model) = self.setup.observed(Scenario::Overflowing)?;
        let what = format!(
            "{} applied and {} skipped steps, starting at a loss scale of 2^{}",
            observation.applied,
            observation.skipped,
            HIGH_SCALE.log2()
        );
        self.same(Scenario::Overflowing, &what, &plain, &observed)?;
        self.followed(&what, &observation);
        // `overrides` may put the whole model into FP32. Then no step overflows.
        if observation.skipped == 0 && self.setup.job.overrides.is_empty() {
            self.findings.fail(Reason::Skip, "no step was skipped although gradients overflow");
        }
        if !identity::is_finite(model.as_ref())? {
            self.findings.fail(Reason::NonFinite, "a weight is not finite after an overflow");
        }
        let moves = observation.scale.map_or((0, 0), |rule| (rule.grown, rule.backed_off));
        let over = format!("{what}: the scale grew {} times and fell {} times", moves.0, moves.1);
        self.said(Reason::Scale, "the loss scale after each step", over);
        self.said(Reason::Skip, "which steps are skipped, and what skipped steps change", what);
        Ok(())
    }

    /// Checks that the run without an observer and the run that was observed in each step end with
    /// the same state.
    fn same(
        &mut self,
        scenario: Scenario,
        what: &str,
        plain: &FinalState,
        observed: &FinalState,
    ) -> Result<()> {
        let tolerance = self.tolerance(scenario, plain, observed)?;
        let mut difference = plain.difference(observed, &tolerance)?;
        if difference.is_none() && tolerance.is_zero() {
            difference = plain.logged_difference(observed);
        }
        let wrong = difference.map(|difference| {
            format!(
                "{what}: the unobserved run ends with other values than the observed run of the same steps: \
                 {difference}"
            )
        });
        let how = match tolerance.is_zero() {
            true => "to the bit",
            false => {
                "within the tolerance of a repeated run, because the device is not reproducible"
            }
        };
        let compared = format!("weights, optimizer state, loss scale and logs, {how}");
        self.findings.equal(Reason::Watching, compared, what, wrong);
        Ok(())
    }

    /// Returns how far the final states of the two runs may differ. The tolerance is 0 on a CPU, or
    /// if the two states have the same bits. Otherwise repeats the first run and computes the
    /// tolerance from how far its two final states differ.
    fn tolerance(
        &mut self,
        scenario: Scenario,
        plain: &FinalState,
        other: &FinalState,
    ) -> Result<Tolerance> {
        let is_cuda = self.setup.case.trainer.device.is_cuda();
        if !is_cuda || plain.difference(other, &Tolerance::default())?.is_none() {
            return Ok(Tolerance::default());
        }
        if let Some((_, known)) = self.tolerances.iter().find(|(known, _)| *known == scenario) {
            return Ok(known.clone());
        }
        let tolerance = plain.repeated(&self.setup.plain(scenario)?)?;
        self.tolerances.push((scenario, tolerance.clone()));
        Ok(tolerance)
    }

    /// Adds the comparison for a rule that requires equal values. The rule is broken if one of the
    /// failures so far belongs to it.
    fn said(&mut self, rule: Reason, what: &str, over: impl Into<String>) {
        let is_held = self.findings.failures.iter().all(|failure| failure.reason != rule);
        self.findings.checked.push(Checked::equal(rule, what, over, is_held));
    }

    /// Adds the failures and comparisons that the observer of the steps has found.
    fn followed(&mut self, what: &str, observation: &Observation) {
        for Failure { reason, text, .. } in &observation.failures {
            self.findings.fail(*reason, format!("{what}: {text}"));
        }
        match (&observation.no_replay, &observation.replay) {
            (Some(why), _) => {
                self.findings.left_out(Reason::Update, &format!("not repeated in float64: {why}"));
            }
            (None, Some(replay)) => {
                let clipped = match replay.clipped {
                    0 => String::new(),
                    steps => format!(", clipped in {steps}"),
                };
                self.findings.measured(
                    Reason::Update,
                    "difference from the update in float64, divided by what rounding explains",
                    &format!("{what}{clipped}"),
                    Unit::Number,
                    (replay.worst, 1.0),
                );
                self.said(Reason::Schedule, "the learning rates of all parameter groups", what);
            }
            (None, None) => {}
        }
    }

    /// Compares each step's gradient and loss, and the batch statistics, with those of 32-true.
    fn gradients(&mut self, observation: &Observation) -> Result<()> {
        let Some(reference) = &observation.reference else { return Ok(()) };
        match reference.dropout.found() {
            (0, ..) if reference.draws => {
                let why = "the model draws random numbers, but no layer drops elements that can be \
                           counted";
                self.findings.left_out(Reason::Dropout, why);
            }
            (0, ..) => self.findings.left_out(Reason::Dropout, "the model uses no dropout"),
            (layers, away, wrong) => {
                if let Some(text) = wrong {
                    self.findings.fail(Reason::Dropout, text);
                }
                let over = format!("the first batch, {layers} layers");
                let figure = (away, dropout::CHANCE);
                self.findings.measured(
                    Reason::Dropout,
                    "difference between the fraction of zeroed elements and the dropout rate",
                    &over,
                    Unit::StandardErrors,
                    figure,
                );
            }
        }
        let steps = &reference.steps;
        let judged = Judged::new(steps, self.setup.precision);
        let over = judged.over();
        let masks_differ = reference.masks_differ;
        if masks_differ {
            let why = "under 32-true the model ran other attention with dropout than under this precision, so \
                       other weights were dropped, and the gradient is shown but not judged";
            self.findings.left_out(Reason::Gradient, why);
        }
        let error = steps.iter().map(|step| step.found.error).fold(0.0, larger);
        for (what, (figure, bound)) in [
            (
                "component along 32-true's gradient, relative difference from this gradient's norm",
                judged.projection,
            ),
            ("a gradient's component along 32-true's, relative difference", judged.parameter),
            ("distance from 32-true's gradient, relative to its norm", (error, f64::INFINITY)),
            ("the loss, relative difference from 32-true's", judged.loss),
        ] {
            let figure = (figure, if masks_differ { f64::INFINITY } else { bound });
            self.findings.measured(Reason::Gradient, what, &over, Unit::Share, figure);
        }
        let bound = statistics_bound(self.setup.precision);
        if let Some((name, away)) = reference.buffers(&observation.buffers)? {
            self.findings.measured(
                Reason::Buffers,
                format!("relative difference from the buffer under 32-true, largest in `{name}`"),
                &format!("at the end of {over}"),
                Unit::Share,
                (away, bound),
            );
        } else {
            self.findings.left_out(Reason::Buffers, "the model has no buffers");
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
