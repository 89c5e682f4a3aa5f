//! Compares the loss scale with the scale that torch.amp.GradScaler would have.

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{
    Result,
    precision::ScalerState,
    trainer::config::{AtFloor, ScaleFloor},
};

/// Checks that the loss scale grows after enough steps and falls after an overflow, as in
/// torch.amp.GradScaler.
#[derive(Default)]
pub(super) struct ScaleFollowsRule {
    before: Option<Before>,
}

/// The scaler's state and the step counts before a step.
#[derive(Debug, Clone, Copy)]
struct Before {
    state: ScalerState,
    applied: u64,
    skipped: u64,
}

impl Rule for ScaleFollowsRule {
    fn invariant(&self) -> Invariant {
        Invariant::ScaleFollowsRule
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::StepBegins, Moment::StepEnds]
    }

    fn violation(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<Option<String>> {
        let scaler = &seen.state.optim.scaler;
        let counts = seen.state.counts;
        // While steps are in flight, the host's copy of the scale lags behind the scale on the
        // device.
        if !scaler.is_enabled() || seen.running > 0 {
            self.before = None;
            return Ok(None);
        }
        let now = scaler.state();
        if moment == Moment::StepBegins {
            let (applied, skipped) = (counts.applied, counts.skipped);
            self.before = Some(Before { state: now, applied, skipped });
            return Ok(None);
        }
        let Some(before) = self.before.take() else { return Ok(None) };
        if let Some(broken) = differs_on_device(scaler.read_device()?, now) {
            return Ok(Some(broken));
        }
        // If the number of applied steps has become lower, the run has returned to an earlier
        // state, and nothing can be compared.
        let Some(applied) = counts.applied.checked_sub(before.applied) else { return Ok(None) };
        let skipped = counts.skipped - before.skipped;
        let ScaleFloor { min_scale, then } = seen.state.config.recovery.scale_floor;
        let held = then == AtFloor::Warn && now.scale == f64::from(min_scale as f32);
        Ok(differs(before.state, now, applied, skipped).filter(|_| !held))
    }
}

/// Describes the violation if the scale or the growth tracker differs between the device and the
/// host.
fn differs_on_device((scale, tracker): (f32, i32), host: ScalerState) -> Option<String> {
    ((f64::from(scale), tracker) != (host.scale, host.growth_tracker)).then(|| {
        format!(
            "on the device, the loss scale is {scale:e} and its growth tracker {tracker}, but on \
             the host they are {:e} and {}: something has written to the scale's tensor; set the \
             scale only in numerics.scaler",
            host.scale, host.growth_tracker
        )
    })
}

/// Describes the violation if `applied` applied and `skipped` skipped steps do not lead from the
/// scale `before` to the scale `now`.
fn differs(before: ScalerState, now: ScalerState, applied: u64, skipped: u64) -> Option<String> {
    let mut expected = (before.scale, before.growth_tracker);
    for _ in 0..skipped {
        expected = after(before, expected, true);
    }
    for _ in 0..applied {
        expected = after(before, expected, false);
    }
    let (scale, tracker) = expected;
    ((scale, tracker) != (now.scale, now.growth_tracker)).then(|| {
        format!(
            "the loss scale went from {:e} to {:e} in {applied} applied and {skipped} skipped \
             steps, but its rule (times {} after an overflow, times {} after {} steps without \
             one) gives {scale:e}, with a growth tracker of {tracker} instead of {}: code other \
             than the step changes the scale; set the scale only in numerics.scaler",
            before.scale,
            now.scale,
            before.backoff_factor,
            before.growth_factor,
            before.growth_interval,
            now.growth_tracker,
        )
    })
}

/// Returns the scale and the growth tracker after one more step, as torch.amp.GradScaler computes
/// them. A scale that would become infinite in f32 does not grow.
fn after(rule: ScalerState, (scale, tracker): (f64, i32), overflowed: bool) -> (f64, i32) {
    let narrow = |scale: f64| f64::from(scale as f32);
    match i64::from(tracker) + 1 {
        _ if overflowed => (narrow(scale * rule.backoff_factor), 0),
        steps if steps < rule.growth_interval => (scale, tracker + 1),
        _ => {
            let grown = narrow(scale * rule.growth_factor);
            (if grown.is_finite() { grown } else { scale }, 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::precision::{GradScaler, GradScalerConfig};

    const CONFIG: GradScalerConfig = GradScalerConfig {
        init_scale: 1024.0,
        growth_factor: 2.0,
        backoff_factor: 0.5,
        growth_interval: 3,
    };

    /// Returns the index of the first step after which a scaler with the constants `config` has
    /// another scale or growth tracker than a scaler with the constants of `CONFIG`.
    fn first_difference(config: GradScalerConfig, overflows: &[bool]) -> Option<usize> {
        let state = |scale, growth_tracker| ScalerState {
            scale,
            growth_factor: CONFIG.growth_factor,
            backoff_factor: CONFIG.backoff_factor,
            growth_interval: CONFIG.growth_interval,
            growth_tracker,
        };
        let mut now = (CONFIG.init_scale as f32, 0);
        for (step, overflowed) in overflows.iter().enumerate() {
            let before = state(f64::from(now.0), now.1);
            now = config.next(now, *overflowed);
            let after = state(f64::from(now.0), now.1);
            if differs(before, after, u64::from(!overflowed), u64::from(*overflowed)).is_some() {
                return Some(step);
            }
        }
        None
    }

    /// Checks that a scaler with another growth interval, growth factor or backoff factor than
    /// `CONFIG` is reported as soon as its scale or growth tracker differs.
    #[test]
    fn a_scale_of_another_rule_is_told_at_its_first_step() {
        let steps = [true, false, false, false, false, true, false];
        assert_eq!(first_difference(CONFIG, &steps), None);
        let late = GradScalerConfig { growth_interval: 4, ..CONFIG };
        assert_eq!(first_difference(late, &steps), Some(3));
        let fourfold = GradScalerConfig { growth_factor: 4.0, ..CONFIG };
        assert_eq!(first_difference(fourfold, &steps), Some(3));
        let little = GradScalerConfig { backoff_factor: 0.75, ..CONFIG };
        assert_eq!(first_difference(little, &steps), Some(0));
    }

    /// Checks that a scale or a growth tracker that differs between device and host is reported,
    /// and that equal values are not.
    #[test]
    fn the_devices_half_is_the_hosts() -> Result<()> {
        let scaler = GradScaler::new(Device::Cpu, CONFIG)?;
        assert_eq!(differs_on_device(scaler.read_device()?, scaler.state()), None);
        for other in [(512.0, 0), (1024.0, 1)] {
            assert!(differs_on_device(other, scaler.state()).is_some(), "{other:?}");
        }
        Ok(())
    }

    /// Checks two cases that are not violations: a step that is tried several times with lower
    /// scales (`lower-scale`), and a scale that does not grow because twice the scale would be
    /// infinite in f32.
    #[test]
    fn attempts_are_followed_and_a_scale_that_cannot_grow_stays() -> Result<()> {
        let scaler = GradScaler::new(Device::Cpu, CONFIG)?;
        let before = scaler.state();
        let after = ScalerState { scale: 256.0, growth_tracker: 1, ..before };
        assert_eq!(differs(before, after, 1, 2), None);
        let said = differs(before, after, 1, 1).expect("one skipped step is missing");
        assert!(said.contains("gives 5.12e2"), "{said}");
        let largest = ScalerState { scale: 2f64.powi(127), growth_tracker: 2, ..before };
        let stays = ScalerState { growth_tracker: 0, ..largest };
        assert_eq!(differs(largest, stays, 1, 0), None);
        Ok(())
    }
}
