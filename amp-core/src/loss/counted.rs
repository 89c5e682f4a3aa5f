//! What the loss of a batch counts in a mean over several batches.

use tch::{Kind, Tensor};

use super::IGNORED;
use crate::{Error, Result};

/// How much a batch's loss counts among others: what its mean is over.
#[derive(Debug)]
pub enum Counted {
    /// So many examples.
    Examples(f64),
    /// The sum of targets or weights, an f64 scalar on the batch's device.
    OnDevice(Tensor),
}

impl Counted {
    /// The number; reads it from the device where it is there.
    ///
    /// # Errors
    /// When the device reports an earlier failure.
    pub fn read(&self) -> Result<f64> {
        match self {
            Self::Examples(count) => Ok(*count),
            Self::OnDevice(count) => Ok(count.f_double_value(&[])?),
        }
    }
}

/// What a batch counts by the number that a model gives.
///
/// # Errors
/// When it is not a scalar.
#[doc(hidden)]
pub fn counted_as(count: &Tensor) -> Result<Counted> {
    match count.numel() {
        1 => Ok(Counted::OnDevice(
            count.f_detach()?.f_to_kind(Kind::Double)?.f_reshape([] as [i64; 0])?,
        )),
        _ => Err(Error::config(format!(
            "what a loss counts is a scalar, but `counts` gave {:?}",
            count.size()
        ))),
    }
}

/// The sum of the weights `[C]` of the classes in `target` that are not -100: an f64 scalar on its device,
/// which is what a [weighted](super::weighted_cross_entropy) mean is over.
///
/// # Errors
/// When a class has no weight.
pub fn sum_of_weights(target: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let counts = target.f_ne(IGNORED)?;
    let places = target.f_mul(&counts)?.f_reshape([-1])?;
    let weight = weight.f_to_device(target.device())?.f_to_kind(Kind::Double)?;
    let weights = weight.f_index_select(0, &places)?;
    Ok(weights.f_mul(&counts.f_reshape([-1])?)?.f_sum(Kind::Double)?)
}
