//! OneCycleLR (torch/optim/lr_scheduler.py).

use std::f64::consts::PI;

use super::{Intervals, Rates, Schedule, ends_early, positive, warms_up_longer, within};
use crate::Result;

/// The learning rate rises along a cosine from max_lr/div_factor to max_lr, and then falls along a
/// cosine to max_lr/(div_factor·final_div_factor) (OneCycleLR). The momentum falls while the rate
/// rises, and rises while the rate falls. After the last step, learning rate and momentum keep
/// their last values.
///
/// ```
/// use amp_core::optim::OneCycle;
/// let schedule = OneCycle { max_lr: 1e-3, total_steps: 1000, ..Default::default() };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OneCycle {
    /// The highest rate.
    pub max_lr: f64,
    /// The number of steps of the whole cycle.
    pub total_steps: i64,
    /// The fraction of all steps during which the rate rises.
    pub pct_start: f64,
    /// `max_lr` divided by the learning rate of the first step.
    pub div_factor: f64,
    /// The learning rate of the first step divided by that of the last step.
    pub final_div_factor: f64,
    /// The lowest momentum, which is reached when the rate is `max_lr`.
    pub base_momentum: f64,
    /// The highest momentum, which applies at the start and at the end of the cycle.
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

impl Schedule for OneCycle {
    const NAME: &'static str = "OneCycleLR";

    fn check(&self) -> Result<()> {
        positive("total_steps", self.total_steps)?;
        let fraction = |value: &f64| (0.0..=1.0).contains(value);
        within("pct_start", self.pct_start, fraction(&self.pct_start), "in [0, 1]")?;
        for (name, value) in [
            ("max_lr", self.max_lr),
            ("div_factor", self.div_factor),
            ("final_div_factor", self.final_div_factor),
        ] {
            within(name, value, value > 0.0, "above 0")?;
        }
        for (name, value) in
            [("base_momentum", self.base_momentum), ("max_momentum", self.max_momentum)]
        {
            within(name, value, fraction(&value) && value < 1.0, "in [0, 1)")?;
        }
        Ok(())
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        let rise = (self.pct_start * self.total_steps as f64) as i64;
        let last = self.max_lr / self.div_factor / self.final_div_factor;
        let ends_early =
            || ends_early("total_steps", self.total_steps, planned, format!("only {last:.2e}"));
        warms_up_longer(rise, planned).or_else(ends_early)
    }

    fn rates(&self, t: i64, base: Rates, _: Rates) -> Rates {
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
        Rates { lr, momentum: base.momentum.is_some().then_some(momentum) }
    }
}
