//! Warm-up, stable, decay.

use std::f64::consts::PI;

use super::{
    Intervals, Rates, Schedule, ends_early, not_negative, positive, warms_up_longer, within,
};
use crate::Result;

/// The curve of the learning-rate factor during the decay of [`Wsd`]. p is the part of the decay
/// that has passed, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decay {
    /// 1 − p.
    Linear,
    /// (1 + cos(πp))/2.
    #[default]
    Cosine,
    /// 1 − √p (Hägele et al. 2024).
    OneMinusSqrt,
}

/// Warm-up, stable, decay (Hu et al. 2024, "MiniCPM", §4). The rate rises linearly during
/// warmup_steps, then stays at the optimizer's rate, and falls during the last decay_steps of
/// total_steps. Afterwards the rate is constant. As in transformers' get_wsd_schedule, the
/// optimizer's rate is multiplied by f·(1 − min_lr_ratio) + min_lr_ratio, where f rises from 0 to 1
/// and later falls to 0.
///
/// ```
/// use amp_core::optim::{Decay, Wsd};
/// let schedule = Wsd {
///     warmup_steps: 100,
///     decay_steps: 200,
///     total_steps: 1000,
///     decay_type: Decay::OneMinusSqrt,
///     ..Default::default()
/// };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Wsd {
    /// The number of steps of the warm-up.
    pub warmup_steps: i64,
    /// The number of steps of the decay.
    pub decay_steps: i64,
    /// The number of steps until the end of the decay, including the warm-up.
    pub total_steps: i64,
    /// The curve that the rate follows in the decay.
    pub decay_type: Decay,
    /// The factor by which the rate is multiplied at the start of the warm-up and at the end of the
    /// decay.
    pub min_lr_ratio: f64,
}

impl Schedule for Wsd {
    const NAME: &'static str = "WSD";

    fn check(&self) -> Result<()> {
        let Self { warmup_steps, decay_steps, total_steps, min_lr_ratio, .. } = *self;
        positive("total_steps", total_steps)?;
        not_negative("warmup_steps", warmup_steps)?;
        not_negative("decay_steps", decay_steps)?;
        within("min_lr_ratio", min_lr_ratio, (0.0..=1.0).contains(&min_lr_ratio), "in [0, 1]")
    }

    fn note(&self, planned: Option<Intervals>) -> Option<String> {
        let Self { warmup_steps, decay_steps, total_steps, min_lr_ratio, .. } = *self;
        if warmup_steps.saturating_add(decay_steps) > total_steps {
            return Some(format!(
                "the warm-up takes {warmup_steps} steps and the decay {decay_steps} steps, but \
                 total_steps is only {total_steps}: the decay starts within the warm-up"
            ));
        }
        let rate = format!("only {min_lr_ratio} of the optimizer's");
        let ends_early = || ends_early("total_steps", total_steps, planned, rate);
        warms_up_longer(warmup_steps, planned).or_else(ends_early)
    }

    fn rates(&self, t: i64, base: Rates, last: Rates) -> Rates {
        let Self { warmup_steps, decay_steps, total_steps, decay_type, min_lr_ratio } = *self;
        let share = |from: i64, steps: i64| (t - from) as f64 / steps.max(1) as f64;
        let above = |factor: f64| factor * (1.0 - min_lr_ratio) + min_lr_ratio;
        let begin = total_steps - decay_steps;
        let factor = if t < warmup_steps {
            above(share(0, warmup_steps))
        } else if t < begin {
            1.0
        } else if t < total_steps {
            let passed = share(begin, decay_steps);
            above(match decay_type {
                Decay::Linear => 1.0 - passed,
                Decay::Cosine => 0.5 * (1.0 + (PI * passed).cos()),
                Decay::OneMinusSqrt => 1.0 - passed.sqrt(),
            })
        } else {
            min_lr_ratio
        };
        Rates { lr: base.lr * factor, ..last }
    }
}
