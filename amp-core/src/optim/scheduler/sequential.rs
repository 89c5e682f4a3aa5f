//! SequentialLR (torch/optim/lr_scheduler.py).

use super::{BuildScheduler, Intervals, Rates, Scheduler};
use crate::{Error, Result, optim::saved, state::State};

/// Runs several schedules one after the other. Each starts from the optimizer's initial rates
/// (SequentialLR).
///
/// ```
/// use amp_core::optim::{CosineAnnealing, LinearLr, SequentialLr};
/// let warmup = LinearLr { start_factor: 0.01, total_iters: 10, ..Default::default() };
/// let schedule = SequentialLr::new(warmup).then(10, CosineAnnealing { t_max: 90, eta_min: 1e-6 });
/// ```
pub struct SequentialLr {
    schedules: Vec<Box<dyn BuildScheduler>>,
    milestones: Vec<i64>,
}

impl SequentialLr {
    /// Starts a sequence with its first schedule.
    pub fn new(first: impl BuildScheduler + 'static) -> Self {
        Self { schedules: vec![Box::new(first)], milestones: Vec::new() }
    }

    /// Adds a schedule that replaces the previous schedule after `milestone` intervals (steps or
    /// epochs), counted from the start of the run.
    #[must_use]
    pub fn then(mut self, milestone: i64, next: impl BuildScheduler + 'static) -> Self {
        self.schedules.push(Box::new(next));
        self.milestones.push(milestone);
        self
    }
}

impl BuildScheduler for SequentialLr {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        if !self.milestones.is_sorted_by(|before, after| before < after)
            || self.milestones.first().is_some_and(|first| *first < 1)
        {
            return Err(Error::config(format!(
                "scheduler: milestones are {:?}, but must be positive numbers in ascending order",
                self.milestones
            )));
        }
        if let Some(name) = self.schedules.iter().find_map(|schedule| schedule.monitor()) {
            return Err(Error::config(format!(
                "scheduler: a schedule that monitors `{name}` cannot be part of a sequence: use it alone"
            )));
        }
        let schedules = self.schedules.iter().map(|schedule| schedule.build(base));
        let milestones = self.milestones.clone();
        Ok(Box::new(Sequential {
            schedules: schedules.collect::<Result<_>>()?,
            milestones,
            passed: 0,
        }))
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        if let Some(planned) = planned
            && let Some(late) = self.milestones.iter().find(|late| **late >= planned.count)
        {
            return Some(format!(
                "the training has only {planned}: the schedule after milestone {late} never applies"
            ));
        }
        let starts = [0].into_iter().chain(self.milestones.iter().copied());
        let mut parts = self.schedules.iter().zip(starts).enumerate();
        parts.find_map(|(at, (schedule, start))| {
            let own = planned.map(|planned| {
                let end = self.milestones.get(at).copied().unwrap_or(planned.count);
                Intervals { count: end - start, ..planned }
            });
            schedule.note(own)
        })
    }
}

struct Sequential {
    schedules: Vec<Box<dyn Scheduler>>,
    milestones: Vec<i64>,
    passed: i64,
}

impl Sequential {
    /// Returns the index of the schedule that currently applies.
    fn current(&self) -> usize {
        self.milestones.partition_point(|milestone| *milestone <= self.passed)
    }
}

impl Scheduler for Sequential {
    fn rates(&self) -> Rates {
        self.schedules[self.current()].rates()
    }

    fn advance(&mut self, monitored: Option<f64>) {
        self.passed += 1;
        // At a milestone, the next schedule starts with its own first rates. No schedule advances.
        if !self.milestones.contains(&self.passed) {
            let current = self.current();
            self.schedules[current].advance(monitored);
        }
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put(saved::NAME, &"SequentialLR")?;
        state.put(saved::LAST_EPOCH, &self.passed)?;
        for (at, schedule) in self.schedules.iter().enumerate() {
            state.put_part(&at.to_string(), schedule.state()?);
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        saved::same_layout(&self.state()?, state)?;
        self.passed = state.get(saved::LAST_EPOCH)?;
        for (at, schedule) in self.schedules.iter_mut().enumerate() {
            schedule.load_state(&state.part(&at.to_string()))?;
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        let Self { schedules, milestones, passed } = self;
        let schedules = schedules.iter().map(|schedule| schedule.fork()).collect();
        Box::new(Self { schedules, milestones: milestones.clone(), passed: *passed })
    }
}
