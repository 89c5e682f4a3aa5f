//! Compares the optimizers' learning rates with their schedules.

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{Result, optim::Scheduled};

/// Checks that each optimizer steps with the learning rate of its schedule, and that the schedule
/// advances once per applied step.
pub(super) struct RatesAreScheduled {
    /// Whether the model steps its optimizers itself (manual optimization).
    manual: bool,
    /// The schedules' progress and the step counts before the step.
    before: Before,
}

#[derive(Default)]
struct Before {
    /// For each schedule, the number of steps by which it has advanced. `None` if the schedule
    /// counts epochs or does not report this number.
    passed: Vec<Option<i64>>,
    applied: u64,
    skipped: u64,
}

impl RatesAreScheduled {
    pub(super) fn new(manual: bool) -> Self {
        Self { manual, before: Before::default() }
    }
}

impl Rule for RatesAreScheduled {
    fn invariant(&self) -> Invariant {
        Invariant::RatesAreScheduled
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::Start, Moment::StepBegins, Moment::StepEnds, Moment::EpochEnds]
    }

    fn violation(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<Option<String>> {
        if let Some(broken) = seen.scheduled().iter().find_map(other_rates) {
            return Ok(Some(broken));
        }
        let counts = seen.state.counts;
        match moment {
            Moment::StepBegins => {
                self.before = Before {
                    passed: seen.scheduled().iter().map(Scheduled::passed_steps).collect(),
                    applied: counts.applied + seen.running,
                    skipped: counts.skipped,
                };
                Ok(None)
            }
            // The progress can be compared only if no further step has been started, and if the run
            // has not returned to an earlier state.
            Moment::StepEnds
                if !self.manual && seen.running == 0 && counts.applied >= self.before.applied =>
            {
                self.advanced(seen)
            }
            _ => Ok(None),
        }
    }
}

impl RatesAreScheduled {
    fn advanced(&self, seen: &RunView<'_>) -> Result<Option<String>> {
        let counts = seen.state.counts;
        let skipped = match seen.state.config.recovery.skipped_step_advances {
            true => counts.skipped - self.before.skipped,
            false => 0,
        };
        let steps = (counts.applied - self.before.applied + skipped).cast_signed();
        for (scheduled, before) in seen.scheduled().iter().zip(&self.before.passed) {
            let (Some(before), Some(now)) = (before, scheduled.passed_steps()) else { continue };
            let advanced = now - before;
            // An optimizer without gradients did not step, so its schedule need not have advanced.
            if advanced == steps || (advanced == 0 && !has_gradients(scheduled)?) {
                continue;
            }
            return Ok(Some(format!(
                "the schedule of {} has advanced by {advanced} in {steps} applied steps: code \
                 other than the trainer calls `advance`, or a call of `advance` does not advance \
                 the schedule by exactly one step; let `advance` advance it by one, and leave \
                 the calls to the trainer",
                scheduled.name()
            )));
        }
        Ok(None)
    }
}

fn has_gradients(scheduled: &Scheduled) -> Result<bool> {
    for parameter in scheduled.optimizer.parameters().iter() {
        if parameter.tensor.f_grad()?.defined() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Describes a parameter group whose learning rate or momentum differs from the value of its
/// schedule. Returns `None` if there is no such group.
fn other_rates(scheduled: &Scheduled) -> Option<String> {
    let planned = scheduled.schedule_rates()?;
    let rates = scheduled.optimizer.rates();
    let groups = rates.iter().zip(&planned).enumerate();
    let mut differing = groups.filter(|(_, (own, planned))| {
        let momenta = own.momentum.zip(planned.momentum);
        own.lr != planned.lr || momenta.is_some_and(|(own, planned)| own != planned)
    });
    let (group, (own, planned)) = differing.next()?;
    Some(format!(
        "parameter group {group} of {} has the learning rate {:e}, but its schedule prescribes \
         {:e}: `set_rates` of the optimizer does not store the rates that are passed to it, or \
         code other than the schedule sets rates; let `set_rates` store the rates of every group",
        scheduled.name(),
        own.lr,
        planned.lr
    ))
}
