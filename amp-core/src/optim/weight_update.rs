//! How 16-bit weights are updated. The methods differ in what happens to an update that is smaller
//! than the distance to the next 16-bit number.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::Moments;
use crate::{Result, named::named};

/// How an optimizer updates 16-bit parameters, which the `*-true` precisions have.
///
/// bfloat16 has 8 significant bits, so neighbouring numbers near 1 differ by at least 2⁻⁸. If
/// results are rounded to the nearest number, updates of less than half this distance are lost,
/// however many of them there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WeightUpdate {
    /// Rounds each result to the nearest number, as PyTorch does. The running averages have the
    /// dtype of the parameters if the optimizer can compute in this dtype, and otherwise f32.
    #[default]
    RoundToNearest,
    /// Updates f32 copies of the weights (master weights), and rounds the copies to get the
    /// weights. The copies are made when the optimizer is built. If other code changes the weights
    /// later, the next step overwrites these changes. The running averages are f32.
    MasterWeights,
    /// Computes each step in f32 and rounds the result up or down at random, so that a weight
    /// equals the f32 result on average. No copies of the weights are kept, and the running
    /// averages are f32. Only bfloat16 is supported. The random numbers come from libtorch's
    /// generator of the parameters' device.
    StochasticRounding,
}

/// How an optimizer stores and updates 16-bit weights, and how it stores running averages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Storage {
    /// How 16-bit weights are updated.
    pub weights: WeightUpdate,
    /// How the running averages of gradients and of their squares are stored.
    pub moments: Moments,
}

impl From<WeightUpdate> for Storage {
    fn from(weights: WeightUpdate) -> Self {
        Self { weights, moments: Moments::Full }
    }
}

impl From<Moments> for Storage {
    fn from(moments: Moments) -> Self {
        Self { weights: WeightUpdate::default(), moments }
    }
}

named!(WeightUpdate, "weight update", {
    RoundToNearest => "round-to-nearest",
    MasterWeights => "master-weights",
    StochasticRounding => "stochastic-rounding",
});

/// Returns whether a dtype has 16 bits. Parameters of such a dtype may be updated in f32 instead of
/// in their own dtype.
pub(super) fn is_half(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16)
}

/// Returns an f32 copy of a tensor, without autograd history.
pub(super) fn wide(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_to_kind(Kind::Float)?)
}

/// Writes f32 values into a tensor of another dtype, rounded to the nearest value of that dtype.
pub(super) fn write(to: &Tensor, from: &Tensor) -> Result<()> {
    tch::no_grad(|| to.shallow_clone().f_copy_(from))?;
    Ok(())
}

/// Writes f32 values into a bf16 tensor with stochastic rounding. The probability of rounding a
/// value away from zero is the part that truncation would cut off, divided by the spacing of bf16
/// numbers. For this, a random 16-bit number is added to the low 16 bits of the f32 value, and then
/// the low 16 bits are cut off. Infinities and NaN are unchanged.
pub(super) fn write_stochastically(to: &Tensor, from: &Tensor) -> Result<()> {
    let bits = from.f_view_dtype(Kind::Int)?;
    let noise = bits.f_randint_like(1 << 16)?;
    // The low bits are cleared, because the cast to bf16 would otherwise round again.
    let rounded = bits.f_add(&noise)?.f_bitwise_and(-(1_i64 << 16))?.f_view_dtype(Kind::Float)?;
    // NaN values are written unchanged, because the addition would turn CUDA's NaN, in which all
    // bits except the sign are set, into zero.
    write(to, &from.f_where_self(&from.f_isnan()?, &rounded)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Checks that stochastic rounding keeps NaN and infinities, for several bit patterns of NaN.
    #[test]
    fn what_is_not_finite_stays_what_it_is() -> Result<()> {
        let bits = [i32::MAX, 0x7fc0_0000, -1, 0x7f80_0000, -0x80_0000];
        let from = Tensor::f_from_slice(&bits)?.f_view_dtype(Kind::Float)?;
        let to = Tensor::f_zeros([5], (Kind::BFloat16, Device::Cpu))?;
        write_stochastically(&to, &from)?;
        let seen = Vec::<f32>::try_from(to.f_to_kind(Kind::Float)?)?;
        assert!(seen[..3].iter().all(|value| value.is_nan()), "{seen:?}");
        assert_eq!(seen[3..], [f32::INFINITY, f32::NEG_INFINITY]);
        Ok(())
    }
}
