//! An optimizer together with its schedule.

use super::{
    BuildScheduler, Interval, Intervals, Optimizer, Rates, Scheduler, TrainingPlan, saved,
};
use crate::{Error, Result, log::Logged, monitor::is_not_logged, state::State};

/// A built optimizer together with its schedule, if it has one.
pub struct Scheduled {
    /// The optimizer.
    pub optimizer: Box<dyn Optimizer>,
    name: String,
    /// The rates that each parameter group has in its options, before a schedule changes them.
    initial: Vec<Rates>,
    schedule: Option<Schedule>,
}

/// The current learning rate and momentum of one parameter group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRates {
    /// The optimizer's name in the run: `AdamW` for the first optimizer of this type, `AdamW-1` for
    /// the second, as in Lightning's LearningRateMonitor.
    pub optimizer: String,
    /// The group's index in the optimizer, from 0.
    pub group: usize,
    /// The learning rate, and the momentum if the optimizer has one.
    pub rates: Rates,
}

struct Schedule {
    config: Box<dyn BuildScheduler>,
    /// The schedules of the parameter groups. Each starts from the rate in the group's options.
    groups: Vec<Box<dyn Scheduler>>,
    interval: Interval,
    monitor: Option<String>,
}

impl Schedule {
    fn rates(&self) -> Vec<Rates> {
        self.groups.iter().map(|scheduler| scheduler.rates()).collect()
    }
}

const OPTIMIZER: &str = "optimizer";

/// Returns the prefix of the keys under which a group's schedule is saved.
fn scheduler(group: usize) -> String {
    format!("scheduler/{group}")
}

impl Scheduled {
    /// Adds a schedule to a built optimizer, and sets the first rates of the schedule. Without a
    /// schedule the rates are those of the options. `name` distinguishes the optimizers of a run.
    pub(super) fn new(
        mut optimizer: Box<dyn Optimizer>,
        name: String,
        scheduler: Option<(Box<dyn BuildScheduler>, Interval)>,
    ) -> Result<Self> {
        let initial = optimizer.rates();
        let Some((config, interval)) = scheduler else {
            return Ok(Self { optimizer, name, initial, schedule: None });
        };
        let monitor = config.monitor().map(str::to_owned);
        if let (Some(monitor), Interval::Step) = (&monitor, interval) {
            return Err(Error::config(format!(
                "scheduler: `{monitor}` is known only at the end of an epoch: set the schedule's \
                 interval to epochs"
            )));
        }
        let groups = started(config.as_ref(), &initial)?;
        let schedule = Schedule { config, groups, interval, monitor };
        let rates = schedule.rates();
        rates_are_finite(&name, &rates)?;
        optimizer.set_rates(&rates);
        Ok(Self { optimizer, name, initial, schedule: Some(schedule) })
    }

    /// Returns the optimizer's name in the run: `AdamW` for the first optimizer of this type,
    /// `AdamW-1` for the second.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the current rates of every parameter group.
    pub fn rates(&self) -> Vec<GroupRates> {
        let groups = self.optimizer.rates().into_iter().enumerate();
        let named = |(group, rates)| GroupRates { optimizer: self.name.clone(), group, rates };
        groups.map(named).collect()
    }

    /// Returns whether the optimizer has a schedule.
    pub fn is_scheduled(&self) -> bool {
        self.schedule.is_some()
    }

    /// Returns the name of the logged value that the schedule monitors, if any.
    pub fn monitor(&self) -> Option<&str> {
        self.schedule.as_ref()?.monitor.as_deref()
    }

    /// Returns a note if the options of the schedule are valid but unusual, for example if the
    /// warm-up is longer than the training. `plan` is the length of the training, if it is known.
    pub(crate) fn note(&self, plan: Option<TrainingPlan>) -> Option<String> {
        let Schedule { config, interval, .. } = self.schedule.as_ref()?;
        config.note(plan.map(|plan| {
            let count = match interval {
                Interval::Step => plan.estimated_stepping_batches,
                Interval::Epoch => plan.max_epochs,
            };
            Intervals { count, unit: *interval }
        }))
    }

    /// Advances the schedule if its interval is `passed`, and otherwise does nothing. `logged`
    /// contains the values of the epoch that was just validated; a schedule may monitor one of
    /// them.
    ///
    /// # Errors
    /// When the value that the schedule monitors is missing. The schedule is then unchanged.
    pub fn advance(&mut self, passed: Interval, logged: &[Logged]) -> Result<()> {
        let Some(schedule) = self.schedule.as_mut().filter(|s| s.interval == passed) else {
            return Ok(());
        };
        let monitored = match &schedule.monitor {
            None => None,
            Some(name) => Some(monitored(name, logged)?),
        };
        schedule.groups.iter_mut().for_each(|scheduler| scheduler.advance(monitored));
        let rates = schedule.rates();
        rates_are_finite(&self.name, &rates)?;
        self.optimizer.set_rates(&rates);
        Ok(())
    }

    /// Returns the rates that each parameter group has in its options, before a schedule changes
    /// them.
    pub(crate) fn initial_rates(&self) -> &[Rates] {
        &self.initial
    }

    /// Returns a digest of the rates that the schedule gives in its first `intervals` intervals
    /// (steps or epochs). Returns `None` if there is no schedule, or if the rates depend on a
    /// logged value.
    pub(crate) fn rates_digest(&self, intervals: usize) -> Result<Option<u64>> {
        self.rates_digest_under(self.schedule.as_ref().map(|own| own.config.as_ref()), intervals)
    }

    /// Computes the digest of [`rates_digest`](Self::rates_digest) for the given schedule instead
    /// of the optimizer's schedule.
    pub(crate) fn rates_digest_under(
        &self,
        schedule: Option<&dyn BuildScheduler>,
        intervals: usize,
    ) -> Result<Option<u64>> {
        let Some(schedule) = schedule.filter(|one| one.monitor().is_none()) else {
            return Ok(None);
        };
        let mut groups = started(schedule, &self.initial)?;
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for _ in 0..intervals {
            for group in &mut groups {
                let Rates { lr, momentum } = group.rates();
                for bits in [lr.to_bits(), momentum.unwrap_or_default().to_bits()] {
                    // This is the hash FNV-1a, applied to 64-bit words instead of bytes.
                    hash = (hash ^ bits).wrapping_mul(0x0100_0000_01b3);
                }
                group.advance(None);
            }
        }
        Ok(Some(hash))
    }

    /// Returns whether the rates of the schedule `other` differ from those of this optimizer's
    /// schedule in any of the first `horizon` intervals (steps or epochs).
    pub(crate) fn is_unlike(
        &self,
        other: Option<&dyn BuildScheduler>,
        horizon: i64,
    ) -> Result<bool> {
        let (Some(schedule), Some(other)) = (&self.schedule, other) else {
            return Ok(self.schedule.is_some() != other.is_some());
        };
        if schedule.monitor.is_some() || other.monitor().is_some() {
            return Ok(schedule.monitor.as_deref() != other.monitor());
        }
        let mut own = started(schedule.config.as_ref(), &self.initial)?;
        let mut other = started(other, &self.initial)?;
        for _ in 0..=horizon {
            let pairs = own.iter_mut().zip(&mut other);
            for (own, other) in pairs {
                if own.rates() != other.rates() {
                    return Ok(true);
                }
                own.advance(None);
                other.advance(None);
            }
        }
        Ok(false)
    }

    /// Continues a saved run as if the current options had been used from the start. Advances the
    /// current schedule by the number of intervals (steps or epochs) that the saved schedule had
    /// passed. Without a current schedule, uses the rates in the options.
    ///
    /// # Errors
    /// When the saved state does not contain the number of intervals that the saved schedule had
    /// passed.
    pub(crate) fn replan(&mut self, saved: &State) -> Result<()> {
        let Some(schedule) = &mut self.schedule else {
            self.optimizer.set_rates(&self.initial);
            return Ok(());
        };
        let passed = saved.part(&scheduler(0)).get::<i64>(saved::LAST_EPOCH);
        let passed = passed.map_err(|_| {
            Error::config(format!(
                "the saved schedule of {} does not record how many steps or epochs have passed, \
                 so it cannot continue with other options: resume with the options of the saved run",
                self.name
            ))
        })?;
        schedule.groups = started(schedule.config.as_ref(), &self.initial)?;
        for group in &mut schedule.groups {
            (0..passed).for_each(|_| group.advance(None));
        }
        self.optimizer.set_rates(&schedule.rates());
        Ok(())
    }

    /// Returns the rates of each parameter group for the next step, as computed by the schedule.
    /// Returns `None` if there is no schedule.
    pub(crate) fn schedule_rates(&self) -> Option<Vec<Rates>> {
        self.schedule.as_ref().map(Schedule::rates)
    }

    /// Returns the number of steps that the schedule has counted. Returns `None` if there is no
    /// schedule or if the schedule counts epochs.
    pub(crate) fn passed_steps(&self) -> Option<i64> {
        let schedule = self.schedule.as_ref().filter(|s| s.interval == Interval::Step)?;
        schedule.groups.first()?.state().ok()?.get(saved::LAST_EPOCH).ok()
    }

    /// Returns copies of the schedules of all parameter groups, for a rollback. Returns `None` if
    /// there is no schedule or if the schedule counts epochs.
    pub(crate) fn fork_schedule(&self) -> Option<Vec<Box<dyn Scheduler>>> {
        let schedule = self.schedule.as_ref().filter(|s| s.interval == Interval::Step)?;
        Some(schedule.groups.iter().map(|scheduler| scheduler.fork()).collect())
    }

    /// Replaces the schedules by the copies that [`fork_schedule`](Self::fork_schedule) returned.
    pub(crate) fn restore_schedule(&mut self, forked: Vec<Box<dyn Scheduler>>) {
        if let Some(schedule) = &mut self.schedule {
            schedule.groups = forked;
            self.optimizer.set_rates(&schedule.rates());
        }
    }

    /// Returns the state for a checkpoint: the optimizer's state under `optimizer/`, and the
    /// schedule of each parameter group under `scheduler/<group>/`. The tensors share memory with
    /// the optimizer, so save them before the next step.
    ///
    /// # Errors
    /// When a learning rate or momentum is not finite.
    pub fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put_part(OPTIMIZER, self.optimizer.state()?);
        for (group, running) in self.schedule.iter().flat_map(|s| &s.groups).enumerate() {
            state.put_part(&scheduler(group), running.state()?);
        }
        Ok(state)
    }

    /// Checks that a saved state can be loaded. All optimizers of a run are checked before the
    /// first one is changed.
    ///
    /// # Errors
    /// When the state belongs to another optimizer or schedule.
    pub fn check_state(&self, state: &State) -> Result<()> {
        saved::same_layout(&self.state()?, state)
    }

    /// Restores a state that [`state`](Self::state) returned.
    ///
    /// # Errors
    /// When the state belongs to another optimizer or schedule. After an error nothing is changed.
    pub fn load_state(&mut self, state: &State) -> Result<()> {
        self.check_state(state)?;
        self.optimizer.load_state(&state.part(OPTIMIZER))?;
        let groups = self.schedule.iter_mut().flat_map(|schedule| &mut schedule.groups);
        for (group, running) in groups.enumerate() {
            running.load_state(&state.part(&scheduler(group)))?;
        }
        Ok(())
    }

    /// Goes back to a state of an earlier step of this run. A schedule that counts epochs does not
    /// change, because the run does not go back to an earlier epoch.
    ///
    /// # Errors
    /// When the state belongs to another optimizer or schedule.
    pub(crate) fn go_back(&mut self, state: &State) -> Result<()> {
        match self.schedule.as_ref().filter(|schedule| schedule.interval == Interval::Epoch) {
            None => self.load_state(state),
            Some(schedule) => {
                self.check_state(state)?;
                self.optimizer.load_state(&state.part(OPTIMIZER))?;
                self.optimizer.set_rates(&schedule.rates());
                Ok(())
            }
        }
    }
}

/// Checks that the learning rates of an optimizer's schedule, which a user may have written, are
/// finite and at least 0.
fn rates_are_finite(optimizer: &str, rates: &[Rates]) -> Result<()> {
    match rates.iter().find(|rates| !(rates.lr >= 0.0 && rates.lr.is_finite())) {
        None => Ok(()),
        Some(Rates { lr, .. }) => Err(Error::config(format!(
            "scheduler: the rate of {optimizer} became {lr}, but a rate must be finite and at least 0"
        ))),
    }
}

fn started(config: &dyn BuildScheduler, rates: &[Rates]) -> Result<Vec<Box<dyn Scheduler>>> {
    rates.iter().map(|base| config.build(*base)).collect()
}

fn monitored(name: &str, logged: &[Logged]) -> Result<f64> {
    match logged.iter().find(|logged| logged.name == name) {
        Some(logged) => Ok(logged.value),
        None => Err(is_not_logged(name, logged.iter().map(|logged| logged.name.as_str()))),
    }
}
