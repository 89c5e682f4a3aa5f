//! A built optimizer with its schedule.

use super::{BuildScheduler, Interval, Optimizer, Rates, Scheduler, saved};
use crate::{Result, state::State};

/// A built optimizer with its schedule.
pub struct Scheduled {
    /// The optimizer.
    pub optimizer: Box<dyn Optimizer>,
    schedule: Option<Schedule>,
}

struct Schedule {
    /// One for each parameter group, each from the group's own first rate.
    groups: Vec<Box<dyn Scheduler>>,
    interval: Interval,
}

impl Schedule {
    fn rates(&self) -> Vec<Rates> {
        self.groups.iter().map(|scheduler| scheduler.rates()).collect()
    }
}

const OPTIMIZER: &str = "optimizer";

/// Where a group's schedule saves.
fn scheduler(group: usize) -> String {
    format!("scheduler/{group}")
}

impl Scheduled {
    pub(super) fn new(
        mut optimizer: Box<dyn Optimizer>,
        scheduler: Option<(Box<dyn BuildScheduler>, Interval)>,
    ) -> Result<Self> {
        let Some((config, interval)) = scheduler else {
            return Ok(Self { optimizer, schedule: None });
        };
        let groups = optimizer.rates().into_iter().map(|base| config.build(base));
        let schedule = Schedule { groups: groups.collect::<Result<_>>()?, interval };
        optimizer.set_rates(&schedule.rates());
        Ok(Self { optimizer, schedule: Some(schedule) })
    }

    /// Tells the schedule that an interval of this kind has passed.
    pub fn advance(&mut self, passed: Interval) {
        if let Some(schedule) = &mut self.schedule
            && schedule.interval == passed
        {
            schedule.groups.iter_mut().for_each(|scheduler| scheduler.advance());
            self.optimizer.set_rates(&schedule.rates());
        }
    }

    /// What a checkpoint needs: the optimizer's state under `optimizer/`, that of each parameter
    /// group's schedule under `scheduler/<group>/`. Tensors are handles: save them before the
    /// next step.
    ///
    /// # Errors
    /// When a rate is not finite.
    pub fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put_part(OPTIMIZER, self.optimizer.state()?);
        for (group, running) in self.schedule.iter().flat_map(|s| &s.groups).enumerate() {
            state.put_part(&scheduler(group), running.state()?);
        }
        Ok(state)
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// When the state is of another optimizer or schedule. Nothing is changed then.
    pub fn load_state(&mut self, state: &State) -> Result<()> {
        saved::same_layout(&self.state()?, state)?;
        self.optimizer.load_state(&state.part(OPTIMIZER))?;
        let groups = self.schedule.iter_mut().flat_map(|schedule| &mut schedule.groups);
        for (group, running) in groups.enumerate() {
            running.load_state(&state.part(&scheduler(group)))?;
        }
        Ok(())
    }
}
