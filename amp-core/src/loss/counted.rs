//! The weight of a batch's loss in the mean over several batches.

use std::fmt;

use tch::{Kind, Tensor};

use super::IGNORED;
use crate::{Error, Result};

/// A function from a target to the weight of the batch.
pub type WeightOf<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

/// The denominator of a loss's mean over a batch.
pub enum MeanOver<'a> {
    /// The number of examples. If the batch has a tensor of weights, the sum of the weights.
    Examples,
    /// The number of targets (int64 classes) other than `ignored`, or the sum of their classes'
    /// weights (`weight`, `[C]`). Targets of another dtype are counted as
    /// [`Examples`](Self::Examples).
    Classes {
        /// The ignored class.
        ignored: i64,
        /// One weight for each class; `None` means 1.
        weight: Option<&'a Tensor>,
    },
    /// The result of this function for the target: a scalar on the target's device.
    Weights(WeightOf<'a>),
    /// The whole batch. The loss compares the examples of a batch with each other, so there is no
    /// denominator and the batch is never split.
    Batch,
}

impl MeanOver<'_> {
    /// Computes a batch's weight from its targets, as an f64 scalar on their device; `None` if the
    /// weight is the number of examples. `none_left_out` means that no target is -100, so no
    /// counting is needed.
    pub(crate) fn counts(&self, target: &Tensor, none_left_out: bool) -> Result<Option<Counted>> {
        let counted = match self {
            Self::Examples | Self::Batch => return Ok(None),
            Self::Classes { .. } if target.kind() != Kind::Int64 => return Ok(None),
            Self::Classes { ignored: IGNORED, weight: None } if none_left_out => return Ok(None),
            Self::Classes { ignored, weight: None } => {
                target.f_ne(*ignored)?.f_sum(Kind::Double)?
            }
            Self::Classes { ignored, weight: Some(weight) } => {
                weights_of_classes(target, weight, *ignored)?
            }
            Self::Weights(function) => return counted_as(&function(target)?).map(Some),
        };
        Ok(Some(Counted::OnDevice(counted)))
    }
}

impl fmt::Debug for MeanOver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Examples => "Examples",
            Self::Classes { .. } => "Classes",
            Self::Weights(_) => "Weights",
            Self::Batch => "Batch",
        })
    }
}

/// The weight of a batch's loss: the denominator of its mean.
#[derive(Debug)]
pub enum Counted {
    /// A number of examples.
    Examples(f64),
    /// The number of targets or the sum of weights, an f64 scalar on the batch's device.
    OnDevice(Tensor),
}

impl Counted {
    /// Returns the number. This reads a scalar on the device and waits for it.
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

/// Converts the weight of a batch that a model's `counts` function returned.
///
/// # Errors
/// When the weight is not a scalar.
#[doc(hidden)]
pub fn counted_as(count: &Tensor) -> Result<Counted> {
    match count.numel() {
        1 => Ok(Counted::OnDevice(
            count.f_detach()?.f_to_kind(Kind::Double)?.f_reshape([] as [i64; 0])?,
        )),
        _ => Err(Error::config(format!(
            "`counts` must return a scalar, but returned {:?}",
            count.size()
        ))),
    }
}

/// Sums the weights `[C]` of the classes in `target` other than -100. The result is an f64 scalar
/// on the target's device. It is the denominator of a [weighted](super::weighted_cross_entropy)
/// mean.
///
/// # Errors
/// When a class has no weight.
pub fn sum_of_weights(target: &Tensor, weight: &Tensor) -> Result<Tensor> {
    weights_of_classes(target, weight, IGNORED)
}

fn weights_of_classes(target: &Tensor, weight: &Tensor, ignored: i64) -> Result<Tensor> {
    let counts = target.f_ne(ignored)?;
    let places = target.f_mul(&counts)?.f_reshape([-1])?;
    let weight = weight.f_to_device(target.device())?.f_to_kind(Kind::Double)?;
    let weights = weight.f_index_select(0, &places)?;
    Ok(weights.f_mul(&counts.f_reshape([-1])?)?.f_sum(Kind::Double)?)
}
