//! A running [`Schedule`].

use super::{BuildScheduler, Intervals, Rates, Schedule, Scheduler, saved};
use crate::{Result, state::State};

impl<S: Schedule> BuildScheduler for S {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        self.check()?;
        let rates = self.rates(0, base, base);
        Ok(Box::new(Running { schedule: self.clone(), base, rates, passed: 0 }))
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        Schedule::note(self, planned)
    }
}

#[derive(Clone)]
struct Running<S> {
    schedule: S,
    base: Rates,
    rates: Rates,
    passed: i64,
}

impl<S: Schedule> Scheduler for Running<S> {
    fn rates(&self) -> Rates {
        self.rates
    }

    fn advance(&mut self, _: Option<f64>) {
        self.passed += 1;
        self.rates = self.schedule.rates(self.passed, self.base, self.rates);
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put(saved::NAME, &S::NAME)?;
        state.put(saved::LAST_EPOCH, &self.passed)?;
        saved::put_rates(&mut state, saved::LAST, self.rates)?;
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        saved::same_layout(&self.state()?, state)?;
        let (passed, rates) =
            (state.get(saved::LAST_EPOCH)?, saved::get_rates(state, saved::LAST)?);
        (self.passed, self.rates) = (passed, rates);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(self.clone())
    }
}
