//! Learning-rate schedules with torch.optim.lr_scheduler's rules and rounding.

mod plateau;
mod sequential;

pub use plateau::{ReduceLrOnPlateau, ThresholdMode};
pub use sequential::SequentialLr;

use std::f64::consts::PI;

use super::{Rates, saved};
use crate::{Error, Result, state::State};

/// Options of a schedule that can be started from the optimizer's rates.
pub trait BuildScheduler {
    /// Checks the options and starts at the first step.
    ///
    /// # Errors
    /// When an option is out of range.
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>>;

    /// The logged value that the schedule follows, if it follows one.
    fn monitor(&self) -> Option<&str> {
        None
    }
}

/// A running schedule.
pub trait Scheduler {
    /// The rates of the next step.
    fn rates(&self) -> Rates;
    /// Moves on by one interval; `monitored` is the value of what
    /// [`monitor`](BuildScheduler::monitor) named.
    fn advance(&mut self, monitored: Option<f64>);
    /// What a checkpoint needs.
    ///
    /// # Errors
    /// When a rate is not finite.
    fn state(&self) -> Result<State>;
    /// Goes on from a saved state.
    ///
    /// # Errors
    /// When the state is of another schedule. Nothing is changed then.
    fn load_state(&mut self, state: &State) -> Result<()>;
    /// Another that goes on from here.
    fn fork(&self) -> Box<dyn Scheduler>;
}

/// A schedule whose rates follow from the number of intervals passed and the last rates.
#[derive(Clone)]
struct Rule<F> {
    name: &'static str,
    next: F,
    rates: Rates,
    passed: i64,
}

impl<F: Fn(i64, Rates) -> Rates + Clone + 'static> Scheduler for Rule<F> {
    fn rates(&self) -> Rates {
        self.rates
    }

    fn advance(&mut self, _: Option<f64>) {
        self.passed += 1;
        self.rates = (self.next)(self.passed, self.rates);
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put(saved::NAME, &self.name)?;
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

fn rule(
    name: &'static str,
    first: Rates,
    next: impl Fn(i64, Rates) -> Rates + Clone + 'static,
) -> Box<dyn Scheduler> {
    Box::new(Rule { name, next, rates: first, passed: 0 })
}

/// Rule: an option is a number of its range.
fn within(name: &str, value: f64, holds: bool, range: &str) -> Result<()> {
    if holds && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(format!("scheduler: {name} is {value}, but must be {range}")))
}

fn positive(name: &str, value: i64) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::config(format!("scheduler: {name} is {value}, but must be positive")))
}

/// η = η_min + (η₀ − η_min)(1 + cos(πt/T))/2, in torch's recursive form.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CosineAnnealing {
    /// Intervals until the minimum.
    pub t_max: i64,
    /// The minimum.
    pub eta_min: f64,
}

impl BuildScheduler for CosineAnnealing {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        positive("t_max", self.t_max)?;
        let Self { t_max, eta_min } = *self;
        within("eta_min", eta_min, eta_min >= 0.0, "at least 0")?;
        let period = t_max as f64;
        Ok(rule("CosineAnnealingLR", base, move |t, last| {
            let lr = if (t - 1 - t_max) % (2 * t_max) == 0 {
                last.lr + (base.lr - eta_min) * (1.0 - (PI / period).cos()) / 2.0
            } else {
                (1.0 + (PI * t as f64 / period).cos())
                    / (1.0 + (PI * (t - 1) as f64 / period).cos())
                    * (last.lr - eta_min)
                    + eta_min
            };
            Rates { lr, ..last }
        }))
    }
}

/// Up from max_lr/div_factor to max_lr, then down to a fraction of the start, both along a
/// cosine; momentum moves the other way (OneCycleLR).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OneCycle {
    /// The highest rate.
    pub max_lr: f64,
    /// Steps of the whole cycle.
    pub total_steps: i64,
    /// The share of steps on the way up.
    pub pct_start: f64,
    /// max_lr over the first rate.
    pub div_factor: f64,
    /// The first rate over the last.
    pub final_div_factor: f64,
    /// The lowest momentum, reached at max_lr.
    pub base_momentum: f64,
    /// The highest momentum, at both ends.
    pub max_momentum: f64,
}

impl Default for OneCycle {
    fn default() -> Self {
        Self {
            max_lr: 1e-3,
            total_steps: 0,
            pct_start: 0.3,
            div_factor: 25.0,
            final_div_factor: 1e4,
            base_momentum: 0.85,
            max_momentum: 0.95,
        }
    }
}

impl BuildScheduler for OneCycle {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        positive("total_steps", self.total_steps)?;
        let cycle = *self;
        let fraction = |value: &f64| (0.0..=1.0).contains(value);
        within("pct_start", cycle.pct_start, fraction(&cycle.pct_start), "in [0, 1]")?;
        for (name, value) in [
            ("max_lr", cycle.max_lr),
            ("div_factor", cycle.div_factor),
            ("final_div_factor", cycle.final_div_factor),
        ] {
            within(name, value, value > 0.0, "above 0")?;
        }
        for (name, value) in
            [("base_momentum", cycle.base_momentum), ("max_momentum", cycle.max_momentum)]
        {
            within(name, value, fraction(&value) && value < 1.0, "in [0, 1)")?;
        }
        let cycles = base.momentum.is_some();
        Ok(rule("OneCycleLR", cycle.at(0, cycles), move |t, _| cycle.at(t, cycles)))
    }
}

impl OneCycle {
    /// The rates at step `t`; the last ones hold beyond the end.
    fn at(&self, t: i64, cycle_momentum: bool) -> Rates {
        let initial = self.max_lr / self.div_factor;
        let top = self.pct_start * self.total_steps as f64 - 1.0;
        let end = (self.total_steps - 1) as f64;
        let t = (t as f64).min(end);
        let (up, (from, to)) = if t <= top { (true, (0.0, top)) } else { (false, (top, end)) };
        let at = if to > from { (t - from) / (to - from) } else { 1.0 };
        let anneal = |from: f64, to: f64| to + (from - to) / 2.0 * ((PI * at).cos() + 1.0);
        let (lr, momentum) = if up {
            (anneal(initial, self.max_lr), anneal(self.max_momentum, self.base_momentum))
        } else {
            let last = initial / self.final_div_factor;
            (anneal(self.max_lr, last), anneal(self.base_momentum, self.max_momentum))
        };
        Rates { lr, momentum: cycle_momentum.then_some(momentum) }
    }
}

/// Times gamma every step_size intervals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepLr {
    /// Intervals between changes.
    pub step_size: i64,
    /// The factor.
    pub gamma: f64,
}

impl Default for StepLr {
    fn default() -> Self {
        Self { step_size: 1, gamma: 0.1 }
    }
}

impl BuildScheduler for StepLr {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        positive("step_size", self.step_size)?;
        let Self { step_size, gamma } = *self;
        within("gamma", gamma, gamma >= 0.0, "at least 0")?;
        Ok(rule("StepLR", base, move |t, last| {
            let lr = if t % step_size == 0 { last.lr * gamma } else { last.lr };
            Rates { lr, ..last }
        }))
    }
}

/// The factor moves linearly from start_factor to end_factor over total_iters intervals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearLr {
    /// The first factor.
    pub start_factor: f64,
    /// The last factor.
    pub end_factor: f64,
    /// Intervals between them.
    pub total_iters: i64,
}

impl Default for LinearLr {
    fn default() -> Self {
        Self { start_factor: 1.0 / 3.0, end_factor: 1.0, total_iters: 5 }
    }
}

impl BuildScheduler for LinearLr {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        positive("total_iters", self.total_iters)?;
        let Self { start_factor: start, end_factor: end, total_iters } = *self;
        // From a rate of 0 no factor leads anywhere.
        within("start_factor", start, start > 0.0 && start <= 1.0, "in (0, 1]")?;
        within("end_factor", end, (0.0..=1.0).contains(&end), "in [0, 1]")?;
        let first = Rates { lr: base.lr * start, ..base };
        Ok(rule("LinearLR", first, move |t, last| {
            if t > total_iters {
                return last;
            }
            let total = total_iters as f64;
            let step = end - start;
            let factor = 1.0 + step / (total * start + (t - 1) as f64 * step);
            Rates { lr: last.lr * factor, ..last }
        }))
    }
}

/// Up linearly over warmup_steps, then along a half cosine to zero at total_steps
/// (transformers' get_cosine_schedule_with_warmup).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WarmupCosine {
    /// Steps on the way up; the first has rate 0 unless this is 0.
    pub warmup_steps: i64,
    /// Steps in all.
    pub total_steps: i64,
}

impl BuildScheduler for WarmupCosine {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        positive("total_steps", self.total_steps)?;
        let Self { warmup_steps, total_steps } = *self;
        if warmup_steps < 0 {
            return Err(Error::config(format!(
                "scheduler: warmup_steps is {warmup_steps}, but must be at least 0"
            )));
        }
        if warmup_steps > total_steps {
            return Err(Error::config(format!(
                "scheduler: warmup_steps is {warmup_steps}, but there are {total_steps} steps"
            )));
        }
        let at = move |t: i64| {
            if t < warmup_steps {
                return base.lr * t as f64 / warmup_steps.max(1) as f64;
            }
            let rest = (total_steps - warmup_steps).max(1) as f64;
            let progress = ((t - warmup_steps) as f64 / rest).min(1.0);
            base.lr * 0.5 * (1.0 + (PI * progress).cos())
        };
        Ok(rule("WarmupCosine", Rates { lr: at(0), ..base }, move |t, last| Rates {
            lr: at(t),
            ..last
        }))
    }
}
