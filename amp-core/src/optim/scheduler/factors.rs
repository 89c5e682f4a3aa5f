//! Schedules that multiply the optimizer's rate by a factor.

use super::{Intervals, Rates, Schedule, ends_early, positive, warms_up_longer, within};
use crate::Result;

/// Multiplies the optimizer's rate by a factor that changes linearly from start_factor to
/// end_factor in total_iters intervals, which are steps or epochs (LinearLR).
///
/// ```
/// use amp_core::optim::LinearLr;
/// let warmup = LinearLr { start_factor: 0.01, total_iters: 500, ..Default::default() };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearLr {
    /// The first factor.
    pub start_factor: f64,
    /// The last factor.
    pub end_factor: f64,
    /// The number of intervals (steps or epochs) in which the factor changes.
    pub total_iters: i64,
}

impl Default for LinearLr {
    fn default() -> Self {
        Self { start_factor: 1.0 / 3.0, end_factor: 1.0, total_iters: 5 }
    }
}

impl Schedule for LinearLr {
    const NAME: &'static str = "LinearLR";

    fn check(&self) -> Result<()> {
        let Self { start_factor: start, end_factor: end, total_iters } = *self;
        positive("total_iters", total_iters)?;
        // torch multiplies the current rate in each step, so a rate that starts at 0 would stay 0.
        // Therefore a start_factor of 0 is an error.
        within("start_factor", start, start > 0.0 && start <= 1.0, "in (0, 1]")?;
        within("end_factor", end, (0.0..=1.0).contains(&end), "in [0, 1]")
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        let planned = planned.filter(|_| self.end_factor > self.start_factor);
        warms_up_longer(self.total_iters, planned)
    }

    fn rates(&self, t: i64, _: Rates, last: Rates) -> Rates {
        let Self { start_factor: start, end_factor: end, total_iters } = *self;
        let factor = match t {
            0 => start,
            t if t > total_iters => return last,
            t => {
                let step = end - start;
                1.0 + step / (total_iters as f64 * start + (t - 1) as f64 * step)
            }
        };
        Rates { lr: last.lr * factor, ..last }
    }
}

/// Multiplies the optimizer's rate by a constant factor for total_iters intervals (steps or
/// epochs). Afterwards the rate is that of the optimizer's options (ConstantLR).
///
/// ```
/// use amp_core::optim::ConstantLr;
/// let schedule = ConstantLr { factor: 0.1, total_iters: 20 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConstantLr {
    /// The factor.
    pub factor: f64,
    /// The number of intervals (steps or epochs) in which the factor applies.
    pub total_iters: i64,
}

impl Default for ConstantLr {
    fn default() -> Self {
        Self { factor: 1.0 / 3.0, total_iters: 5 }
    }
}

impl Schedule for ConstantLr {
    const NAME: &'static str = "ConstantLR";

    fn check(&self) -> Result<()> {
        positive("total_iters", self.total_iters)?;
        // torch divides the current rate by the factor, and stops with a ZeroDivisionError if the
        // factor is 0. Therefore a factor of 0 is an error here, too.
        within("factor", self.factor, self.factor > 0.0 && self.factor <= 1.0, "in (0, 1]")
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        warms_up_longer(self.total_iters, planned.filter(|_| self.factor < 1.0))
    }

    fn rates(&self, t: i64, _: Rates, last: Rates) -> Rates {
        let factor = match t {
            0 => self.factor,
            t if t == self.total_iters => 1.0 / self.factor,
            _ => return last,
        };
        Rates { lr: last.lr * factor, ..last }
    }
}

/// The rate after t intervals (steps or epochs) is η₀(1 − t/T)^power, where η₀ is the optimizer's
/// rate and T is `total_iters`. After T intervals the rate stays 0. As in torch, the rate is
/// computed from the previous rate, so its rounding equals torch's (PolynomialLR).
///
/// ```
/// use amp_core::optim::PolynomialLr;
/// let schedule = PolynomialLr { total_iters: 1000, power: 0.9 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolynomialLr {
    /// The number of intervals (steps or epochs) after which the rate is 0.
    pub total_iters: i64,
    /// The exponent. 1 gives a straight line.
    pub power: f64,
}

impl Default for PolynomialLr {
    fn default() -> Self {
        Self { total_iters: 5, power: 1.0 }
    }
}

impl Schedule for PolynomialLr {
    const NAME: &'static str = "PolynomialLR";

    fn check(&self) -> Result<()> {
        positive("total_iters", self.total_iters)?;
        within("power", self.power, self.power >= 0.0, "at least 0")
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        ends_early("total_iters", self.total_iters, planned.filter(|_| self.power > 0.0), 0)
    }

    fn rates(&self, t: i64, _: Rates, last: Rates) -> Rates {
        if t == 0 || t > self.total_iters {
            return last;
        }
        let left = |t: i64| 1.0 - t as f64 / self.total_iters as f64;
        Rates { lr: last.lr * (left(t) / left(t - 1)).powf(self.power), ..last }
    }
}

/// Multiplies the optimizer's rate by a factor that a function computes from the number of passed
/// intervals (steps or epochs). The function is the same for all parameter groups (LambdaLR).
/// Checkpoints do not contain the function, so a resumed run uses the function in the current code.
///
/// ```
/// use amp_core::optim::LambdaLr;
/// let schedule = LambdaLr { lr_lambda: |epoch| 0.95_f64.powf(epoch as f64) };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LambdaLr<F: Fn(i64) -> f64 + Clone + 'static> {
    /// The function that computes the factor from the number of passed intervals (steps or epochs).
    pub lr_lambda: F,
}

impl<F: Fn(i64) -> f64 + Clone + 'static> Schedule for LambdaLr<F> {
    const NAME: &'static str = "LambdaLR";

    fn rates(&self, t: i64, base: Rates, last: Rates) -> Rates {
        Rates { lr: base.lr * (self.lr_lambda)(t), ..last }
    }
}
