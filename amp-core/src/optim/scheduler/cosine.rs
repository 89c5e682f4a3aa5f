//! Schedules in which the rate follows a cosine.

use std::f64::consts::PI;

use super::{
    Intervals, Rates, Schedule, ends_early, not_negative, positive, warms_up_longer, within,
};
use crate::Result;

/// The rate after t intervals (steps or epochs) is η_min + (η₀ − η_min)(1 + cos(πt/T))/2, where η₀
/// is the optimizer's rate, η_min is `eta_min` and T is `t_max`. As in torch, the rate is computed
/// from the previous rate, so its rounding equals torch's (CosineAnnealingLR).
///
/// ```
/// use amp_core::optim::CosineAnnealing;
/// let schedule = CosineAnnealing { t_max: 50, eta_min: 1e-5 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CosineAnnealing {
    /// The number of intervals (steps or epochs) after which the rate is lowest.
    pub t_max: i64,
    /// The lowest rate.
    pub eta_min: f64,
}

impl Schedule for CosineAnnealing {
    const NAME: &'static str = "CosineAnnealingLR";

    fn check(&self) -> Result<()> {
        positive("t_max", self.t_max)?;
        within("eta_min", self.eta_min, self.eta_min >= 0.0, "at least 0")
    }

    fn rates(&self, t: i64, base: Rates, last: Rates) -> Rates {
        if t == 0 {
            return last;
        }
        let Self { t_max, eta_min } = *self;
        let period = t_max as f64;
        let lr = if (t - 1 - t_max) % (2 * t_max) == 0 {
            last.lr + (base.lr - eta_min) * (1.0 - (PI / period).cos()) / 2.0
        } else {
            (1.0 + (PI * t as f64 / period).cos()) / (1.0 + (PI * (t - 1) as f64 / period).cos())
                * (last.lr - eta_min)
                + eta_min
        };
        Rates { lr, ..last }
    }
}

/// [`CosineAnnealing`] with restarts (SGDR, Loshchilov and Hutter 2017; torch's
/// CosineAnnealingWarmRestarts). The first period has t_0 intervals (steps or epochs). Each further
/// period is t_mult times as long as the previous one. At the start of a period the rate is the
/// optimizer's initial rate.
///
/// ```
/// use amp_core::optim::CosineAnnealingWarmRestarts;
/// // Restarts after 10, 30 and 70 intervals.
/// let schedule = CosineAnnealingWarmRestarts { t_0: 10, t_mult: 2, eta_min: 1e-5 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CosineAnnealingWarmRestarts {
    /// The number of intervals (steps or epochs) until the first restart.
    pub t_0: i64,
    /// The length of each period divided by the length of the previous period.
    pub t_mult: i64,
    /// The lowest rate.
    pub eta_min: f64,
}

impl Default for CosineAnnealingWarmRestarts {
    fn default() -> Self {
        Self { t_0: 0, t_mult: 1, eta_min: 0.0 }
    }
}

impl Schedule for CosineAnnealingWarmRestarts {
    const NAME: &'static str = "CosineAnnealingWarmRestarts";

    fn check(&self) -> Result<()> {
        positive("t_0", self.t_0)?;
        positive("t_mult", self.t_mult)?;
        within("eta_min", self.eta_min, self.eta_min >= 0.0, "at least 0")
    }

    fn rates(&self, passed: i64, base: Rates, last: Rates) -> Rates {
        let Self { t_0, t_mult, eta_min } = *self;
        let (mut t, mut length) = (passed, t_0);
        if t_mult == 1 {
            t %= length;
        }
        while t >= length {
            t -= length;
            length = length.saturating_mul(t_mult);
        }
        let cosine = (PI * t as f64 / length as f64).cos();
        Rates { lr: eta_min + (base.lr - eta_min) * (1.0 + cosine) / 2.0, ..last }
    }
}

/// A linear warm-up for warmup_steps, and then half a period of a cosine, which falls to zero at
/// total_steps (transformers' get_cosine_schedule_with_warmup).
///
/// ```
/// use amp_core::optim::WarmupCosine;
/// let schedule = WarmupCosine { warmup_steps: 100, total_steps: 1000 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WarmupCosine {
    /// The number of warm-up steps. If there is a warm-up, the first step has the rate 0.
    pub warmup_steps: i64,
    /// The total number of steps, including the warm-up.
    pub total_steps: i64,
}

impl Schedule for WarmupCosine {
    const NAME: &'static str = "WarmupCosine";

    fn check(&self) -> Result<()> {
        let Self { warmup_steps, total_steps } = *self;
        positive("total_steps", total_steps)?;
        not_negative("warmup_steps", warmup_steps)
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        let Self { warmup_steps, total_steps } = *self;
        if warmup_steps > total_steps {
            return Some(format!(
                "the warm-up takes {warmup_steps} steps, but total_steps is only {total_steps}: \
                 the learning rate does not reach its full value"
            ));
        }
        let ends_early = || ends_early("total_steps", total_steps, planned, 0);
        warms_up_longer(warmup_steps, planned).or_else(ends_early)
    }

    fn rates(&self, t: i64, base: Rates, last: Rates) -> Rates {
        let Self { warmup_steps, total_steps } = *self;
        if t < warmup_steps {
            return Rates { lr: base.lr * t as f64 / warmup_steps.max(1) as f64, ..last };
        }
        let rest = (total_steps - warmup_steps).max(1) as f64;
        let progress = ((t - warmup_steps) as f64 / rest).min(1.0);
        Rates { lr: base.lr * 0.5 * (1.0 + (PI * progress).cos()), ..last }
    }
}
