//! Decides when the invariants of training are checked.

use super::{super::state::Counts, Moment};
use crate::trainer::config::Check;

/// The smallest number of attempted steps between two checks at the ends of epochs.
const BETWEEN: u64 = 10;

/// Decides at which moments invariants are checked.
pub(super) struct Clock {
    level: Check,
    /// The numbers of attempted and applied steps at [`Moment::Start`]. They are above 0 in a
    /// resumed run. The steps that are checked are counted from there.
    start: (u64, u64),
    /// The number of the attempted step that is being checked. `None` if no step is being checked.
    step: Option<u64>,
    /// The number of the last step that was checked, counting only applied steps.
    applied: u64,
    evaluations: u64,
    /// The number of attempted steps at the last check at the end of an epoch.
    epoch: Option<u64>,
}

impl Clock {
    pub(super) fn new(level: Check) -> Self {
        Self { level, start: (0, 0), step: None, applied: 0, evaluations: 0, epoch: None }
    }

    /// Returns whether invariants are checked now. `running` is the number of steps in flight.
    #[inline]
    pub(super) fn is_due(&mut self, moment: Moment, counts: &Counts, running: u64) -> bool {
        if self.level == Check::Off {
            return false;
        }
        let all = self.level == Check::Full;
        match moment {
            Moment::Start => {
                self.start = (counts.attempts, counts.applied);
                (self.step, self.applied) = (None, 0);
                true
            }
            Moment::StepBegins => {
                let attempt = counts.attempts + running + 1;
                let of_run = attempt - self.start.0;
                // If the run has returned to an earlier state, the number of applied steps may be
                // lower than in `start`.
                let applied = (counts.applied + running + 1).saturating_sub(self.start.1);
                // The checked steps are counted by attempts, so all of them may have been skipped.
                // Therefore the applied steps number 1, 2, 3, 10, … are checked too.
                let first = applied > self.applied && is_sparse(applied);
                let due = all || is_sparse(of_run) || first;
                if due {
                    (self.step, self.applied) = (Some(attempt), applied.max(self.applied));
                }
                due
            }
            Moment::GradientsCleared => self.step.is_some(),
            Moment::StepEnds => self.step.take_if(|step| counts.attempts >= *step).is_some(),
            Moment::EvaluationBegins => {
                self.evaluations += 1;
                all || is_sparse(self.evaluations)
            }
            Moment::EvaluationEnds => all || is_sparse(self.evaluations),
            Moment::EpochEnds => {
                let last = self.epoch.get_or_insert(self.start.0);
                let due = all || counts.attempts >= *last + BETWEEN;
                if due {
                    *last = counts.attempts;
                }
                due
            }
        }
    }
}

/// Returns whether `count` is 1, 2, 3 or a power of ten.
fn is_sparse(count: u64) -> bool {
    match count {
        0..=3 => count > 0,
        _ => 10_u64.checked_pow(count.ilog10()) == Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_at(level: Check, steps: u64) -> Vec<u64> {
        let mut clock = Clock::new(level);
        let mut counts = Counts::default();
        let mut due = Vec::new();
        for step in 1..=steps {
            if clock.is_due(Moment::StepBegins, &counts, 0) {
                assert!(clock.is_due(Moment::GradientsCleared, &counts, 0));
                due.push(step);
            }
            counts.attempts += 1;
            counts.applied += 1;
            let looks = due.last() == Some(&step);
            assert_eq!(clock.is_due(Moment::StepEnds, &counts, 0), looks, "step {step}");
        }
        due
    }

    /// Checks, for each level, after which of the first steps the invariants are checked.
    #[test]
    fn each_level_has_its_steps() {
        assert!(looked_at(Check::Off, 2000).is_empty());
        assert_eq!(looked_at(Check::Cheap, 2000), [1, 2, 3, 10, 100, 1000]);
        assert_eq!(looked_at(Check::Full, 50), (1..=50).collect::<Vec<_>>());
    }

    /// Checks that a resumed run counts the steps since it was resumed, and that skipped steps do
    /// not delay the checks of applied steps.
    #[test]
    fn steps_are_counted_from_the_start_of_the_process() {
        let mut clock = Clock::new(Check::Cheap);
        let mut counts = Counts { attempts: 57, applied: 40, ..Counts::default() };
        assert!(clock.is_due(Moment::Start, &counts, 0));
        assert!(clock.is_due(Moment::StepBegins, &counts, 0));
        counts.attempts += 20;
        assert!(!clock.is_due(Moment::StepBegins, &counts, 0));
        counts.applied += 9;
        assert!(clock.is_due(Moment::StepBegins, &counts, 0));
    }

    /// Checks that the invariants of a step in flight are checked when this step ends, and not when
    /// an earlier step ends.
    #[test]
    fn a_step_in_flight_is_looked_at_when_it_ends() {
        let mut clock = Clock::new(Check::Cheap);
        let mut counts = Counts { attempts: 7, applied: 7, ..Counts::default() };
        assert!(clock.is_due(Moment::StepBegins, &counts, 2));
        assert!(!clock.is_due(Moment::StepBegins, &counts, 3));
        counts.attempts = 9;
        assert!(!clock.is_due(Moment::StepEnds, &counts, 2));
        counts.attempts = 10;
        assert!(clock.is_due(Moment::StepEnds, &counts, 1));
    }
}
