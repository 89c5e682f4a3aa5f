//! How far two runs of the same steps may differ, on a device on which a repeated run does not give
//! the same bits as the first one.

use std::collections::BTreeMap;

use amp_core::{
    Result,
    tch::{Tensor, no_grad},
};

use super::final_state::{dot, exact};
use crate::scalars::all_equal;

/// The smallest tolerance of a tensor, as a fraction of its norm, if a repeated run does not give
/// the same bits as the first one.
const LEAST: f64 = 0.05;
/// The tolerance of a tensor, as a multiple of its difference between a run and the repeated run.
const REPEATED: f64 = 4.0;

/// For each tensor, the accepted difference between two runs of the same steps, relative to the
/// norm of the tensor. By default no bit may differ.
#[derive(Debug, Clone, Default)]
pub(super) struct Tolerance {
    least: f64,
    own: BTreeMap<String, f64>,
}

impl Tolerance {
    /// Computes the tolerance from two runs of the same steps that gave different bits. The
    /// tolerance of a tensor is four times its difference between these runs, and at least 5 % of
    /// its norm. The tolerance exceeds 5 %, for example, for the bias of attention's keys: the
    /// gradient of this bias is only rounding error, but an adaptive optimizer moves it as far as
    /// other parameters.
    pub(super) fn of_repeated(
        run: &[(String, Tensor)],
        again: &[(String, Tensor)],
    ) -> Result<Self> {
        let mut own = BTreeMap::new();
        for ((name, a), (_, b)) in run.iter().zip(again) {
            if a.size() == b.size() && a.kind() == b.kind() {
                let b = b.f_to_device(a.device())?;
                own.insert(name.clone(), REPEATED * relative(a, &b)?);
            }
        }
        Ok(Self { least: LEAST, own })
    }

    /// Returns whether two runs must be equal to the last bit.
    pub(super) fn is_zero(&self) -> bool {
        self.least == 0.0
    }

    /// Describes the first tensor that differs between two runs by more than its tolerance. Returns
    /// `None` if there is none.
    pub(super) fn exceeded(
        &self,
        run: &[(String, Tensor)],
        other: &[(String, Tensor)],
    ) -> Result<Option<String>> {
        if run.len() != other.len() {
            return Ok(Some("the runs hold different tensors".into()));
        }
        let pairs = || run.iter().zip(other);
        let is_alike = |((_, a), (_, b)): (&(_, Tensor), &(_, Tensor))| {
            a.size() == b.size() && a.kind() == b.kind()
        };
        if pairs().all(is_alike) && all_equal(pairs().map(|((_, a), (_, b))| (a, b)))? {
            return Ok(None);
        }
        for ((name, own), (_, other)) in pairs() {
            let other = other.f_to_device(own.device())?;
            if own.size() == other.size() && own.kind() == other.kind() && own.f_equal(&other)? {
                continue;
            }
            let distance = relative(own, &other)?;
            let allowed = self.own.get(name).map_or(self.least, |own| own.max(self.least));
            // A distance that is NaN exceeds every tolerance.
            if distance.is_nan() || distance > allowed {
                return Ok(Some(format!("`{name}` differs by {distance:.1e} of its norm")));
            }
        }
        Ok(None)
    }
}

/// Computes ‖a − b‖/‖b‖.
fn relative(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (exact(a)?, exact(b)?);
    if a.size() != b.size() {
        return Ok(f64::INFINITY);
    }
    let difference = no_grad(|| a.f_sub(&b))?;
    Ok((dot(&difference, &difference)? / dot(&b, &b)?.max(f64::MIN_POSITIVE)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(values: [f64; 3]) -> Vec<(String, Tensor)> {
        let names = ["weight", "bias", "broken"];
        let tensor = |value: f64| Tensor::from_slice(&[value, 0.0]);
        names.iter().zip(values).map(|(name, value)| (name.to_string(), tensor(value))).collect()
    }

    /// Checks how far single tensors may differ between two runs. A tensor that differs by 10 % in
    /// the repeated run may differ by 40 %. A tensor that is equal in the repeated run may differ
    /// by 5 %. NaN is never accepted.
    #[test]
    fn a_tolerance_is_each_tensors_own() -> Result<()> {
        let first = run([1.0, 1.0, 1.0]);
        let tolerance = Tolerance::of_repeated(&first, &run([1.0, 1.1, f64::NAN]))?;
        let exceeded = |values| tolerance.exceeded(&first, &run(values));
        assert!(!tolerance.is_zero());
        assert_eq!(exceeded([1.04, 1.39, 1.0])?, None);
        assert_eq!(
            exceeded([1.0, 2.0, 1.0])?.as_deref(),
            Some("`bias` differs by 5.0e-1 of its norm")
        );
        assert_eq!(
            exceeded([1.06, 1.0, 1.0])?.as_deref(),
            Some("`weight` differs by 5.7e-2 of its norm")
        );
        assert!(exceeded([1.0, 1.0, f64::NAN])?.is_some());
        assert!(Tolerance::default().exceeded(&first, &run([1.0, 1.0 + 1e-15, 1.0]))?.is_some());
        Ok(())
    }
}
