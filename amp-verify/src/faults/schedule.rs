//! Faults (mistakes on purpose) in a learning rate schedule. They are caused by a wrapper around
//! the model's schedule.

use amp_core::{
    Result,
    optim::{BuildScheduler, Intervals, Rates, Scheduler},
    state::State,
};

use super::Fault;

/// Wraps the schedule, so that it makes the mistake `fault`.
pub(super) fn broken(fault: Fault, inner: Box<dyn BuildScheduler>) -> Box<dyn BuildScheduler> {
    Box::new(Build { fault, inner })
}

struct Build {
    fault: Fault,
    inner: Box<dyn BuildScheduler>,
}

impl BuildScheduler for Build {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        let inner = self.inner.build(base)?;
        Ok(Box::new(Broken { fault: self.fault, inner, advanced: 0 }))
    }

    fn monitor(&self) -> Option<&str> {
        self.inner.monitor()
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        self.inner.note(planned)
    }
}

struct Broken {
    fault: Fault,
    inner: Box<dyn Scheduler>,
    advanced: u64,
}

impl Scheduler for Broken {
    fn rates(&self) -> Rates {
        self.inner.rates()
    }

    fn advance(&mut self, monitored: Option<f64>) {
        self.advanced += 1;
        let times = match self.fault {
            Fault::ScheduleTwice => 2,
            Fault::ScheduleStuck => 0,
            Fault::ScheduleLate if self.advanced == 1 => 0,
            _ => 1,
        };
        for _ in 0..times {
            self.inner.advance(monitored);
        }
    }

    fn state(&self) -> Result<State> {
        self.inner.state()
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        match self.fault {
            Fault::ScheduleLostOnLoad => Ok(()),
            _ => self.inner.load_state(state),
        }
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(Self { fault: self.fault, inner: self.inner.fork(), advanced: self.advanced })
    }
}
