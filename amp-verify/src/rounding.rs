//! Rounds tensors to narrower dtypes. The code here is independent of the trainer's code for
//! rounding, so that a check can compare the two.

use amp_core::{
    Result,
    tch::{Kind, Tensor, no_grad},
};

/// Returns the unit roundoff of a dtype: half the distance from 1 to the next larger number.
pub(crate) fn rounding_of(kind: Kind) -> f64 {
    match kind {
        Kind::Half => 2.0_f64.powi(-11),
        Kind::BFloat16 => 2.0_f64.powi(-8),
        Kind::Float => 2.0_f64.powi(-24),
        _ => 2.0_f64.powi(-53),
    }
}

pub(crate) fn is_narrow(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}

/// Rounds each element to the nearest number of the dtype `to`. The result has the dtype of
/// `tensor`. In the backward pass, rounds the gradient in the same way.
pub(crate) fn rounded(tensor: &Tensor, to: Kind) -> Result<Tensor> {
    Ok(tensor.f_to_kind(to)?.f_to_kind(tensor.kind())?)
}

/// Multiplies each element by a random factor between 1 − `share` and 1 + `share`.
pub(crate) fn moved(tensor: &Tensor, share: f64) -> Result<Tensor> {
    let factors = no_grad(|| -> Result<Tensor> {
        let mut factors = tensor.f_rand_like()?;
        // Computes in place, so that a large tensor needs no further memory.
        let _ = factors.f_mul_scalar_(2.0 * share)?.f_add_scalar_(1.0 - share)?;
        Ok(factors)
    })?;
    Ok(tensor.f_mul(&factors)?)
}

/// Rounds stochastically: multiplies each element by a random factor that differs from 1 by at most
/// half of the unit roundoff, and then rounds to nearest. Values that the dtype can represent do
/// not change.
pub(crate) fn rounded_stochastically(tensor: &Tensor, to: Kind) -> Result<Tensor> {
    rounded(&moved(tensor, rounding_of(to) / 2.0)?, to)
}

#[cfg(test)]
mod tests {
    use amp_core::{random, tch::Device};
    use rstest::rstest;

    use super::*;

    /// Checks that the errors of stochastic rounding are smaller than the distance between two
    /// neighbouring numbers of the dtype, that their mean is zero, that some results differ from
    /// rounding to nearest, and that values that the dtype can represent do not change.
    #[rstest]
    #[case::f16(Kind::Half)]
    #[case::bf16(Kind::BFloat16)]
    fn stochastic_rounding_is_unbiased(#[case] kind: Kind) -> Result<()> {
        let _section = random::seeded(5)?;
        let exact = Tensor::rand([1 << 16], (Kind::Float, Device::Cpu)) + 1.0;
        let found = rounded_stochastically(&exact, kind)?;
        assert!(found.equal(&rounded(&found, kind)?), "it is representable");
        assert!(rounded_stochastically(&found, kind)?.equal(&found), "the representable stays");
        let neighbours = 2.0 * rounding_of(kind);
        let error = (&found - &exact) / neighbours;
        assert!(error.abs().max().double_value(&[]) < 1.0);
        // The unit of `error` is the distance between two neighbouring numbers. The standard
        // deviation of the errors is 0.289 (1/√12) for rounding to nearest, and at most 0.41 (1/√6)
        // for stochastic rounding.
        let deviation = error.std(true).double_value(&[]);
        assert!(deviation > 0.289 && deviation < 0.41, "{deviation}");
        assert!(error.mean(Kind::Double).double_value(&[]).abs() < 0.01);
        let other = found.ne_tensor(&rounded(&exact, kind)?).to_kind(Kind::Float);
        let share = other.mean(Kind::Double).double_value(&[]);
        assert!(share > 0.05 && share < 0.35, "{share}");
        Ok(())
    }
}
