//! The model without a fault. A failure that it has as well does not show that the gate detects the
//! fault.

use super::run::job;
use crate::{
    gate::{Failure, Job, Outcome, Plan, PrecisionResult, Task},
    verdict::Verdict,
};

/// The model into whose training a fault is put, trained without the fault.
pub(super) struct Unchanged {
    /// The plan with which the gate judges the model without the fault. If the model's own code has
    /// the fault, there is no model without it: the plan keeps the fault, and every failure counts.
    pub(super) plan: Plan,
    /// The failures without the fault that a run with the fault had as well.
    own: Vec<Failure>,
}

impl Unchanged {
    /// Returns the model of `plan` without the fault.
    pub(super) fn of(plan: &Plan) -> Self {
        let fault = plan.fault.filter(|fault| fault.is_in_code());
        Self { plan: Plan { fault, ..plan.clone() }, own: Vec::new() }
    }

    /// Returns the job of the gate that makes this check without the fault.
    pub(super) fn job(&self, task: Task) -> Job {
        job(&self.plan, task)
    }

    /// Returns those of the `failures` with the fault that the job without the fault, whose outcome
    /// is `alike`, does not have.
    pub(super) fn without_own(
        &mut self,
        failures: &[Failure],
        alike: Option<&Outcome>,
    ) -> Vec<Failure> {
        self.differing(failures, alike.map_or(&[], |outcome| &outcome.failures))
    }

    /// Removes from the `result` with the fault what the result without the fault, `alike`, has as
    /// well. Returns whether the statistical test reported the fault.
    pub(super) fn forget_own(
        &mut self,
        result: &mut PrecisionResult,
        alike: &PrecisionResult,
    ) -> bool {
        result.failures = self.differing(&result.failures, &alike.failures);
        let is_worse = |result: &PrecisionResult| {
            result.judgement.as_ref().is_some_and(|judgement| judgement.verdict == Verdict::Fail)
        };
        if is_worse(alike) && self.plan.fault.is_none() {
            result.judgement = None;
        }
        is_worse(result)
    }

    /// Describes the failures that were not counted, one line each, with the model's name.
    pub(super) fn own(&self) -> impl Iterator<Item = String> {
        let name = self.plan.models[0].name();
        self.own.iter().map(move |own| format!("{name}: {}: {}", own.reason.name(), own.text))
    }

    fn differing(&mut self, failures: &[Failure], alike: &[Failure]) -> Vec<Failure> {
        if self.plan.fault.is_some() {
            return failures.to_vec();
        }
        let is_same =
            |a: &Failure, b: &Failure| (a.reason, &a.invariant) == (b.reason, &b.invariant);
        let (same, differing): (Vec<&Failure>, Vec<&Failure>) =
            failures.iter().partition(|failure| alike.iter().any(|own| is_same(own, failure)));
        let known = alike.iter().filter(|own| same.iter().any(|failure| is_same(own, failure)));
        self.own.extend(known.cloned());
        differing.into_iter().cloned().collect()
    }
}
