//! The weight of a batch's loss in the mean over several batches.

use std::fmt;

use tch::{Kind, Tensor};

use super::IGNORED;
use crate::{Error, Result};

/// A function that computes the weight of a batch from its targets.
pub type WeightOf<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

/// The denominator of a loss's mean over a batch.
pub enum MeanOver<'a> {
    /// The number of examples or, if the batch has a tensor of weights, the sum of these weights.
    Examples,
    /// The number of int64 targets whose class is not `ignored`. If `weight` is given, the sum of
    /// the weights of these targets' classes instead. If the targets have another dtype, the
    /// denominator is that of [`Examples`](Self::Examples).
    Classes {
        /// The ignored class.
        ignored: i64,
        /// The weight of each class, of shape `[C]` for C classes. `None` means that every class
        /// has the weight 1.
        weight: Option<&'a Tensor>,
    },
    /// The scalar that this function computes from the targets, on the targets' device.
    Weights(WeightOf<'a>),
    /// The loss compares the examples of a batch with each other, so it is not a mean of
    /// independent losses. The batch is never split into micro-batches.
    Batch,
}

impl MeanOver<'_> {
    /// Computes the denominator for a batch from its targets, as an f64 scalar on the targets'
    /// device. Returns `None` if batches are weighted by their numbers of examples. `none_left_out`
    /// states that no target is -100. If -100 is the ignored class and there are no class weights,
    /// the result is then `None`, too, because every target counts.
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

/// The weight of a batch's loss in the mean over several batches: the denominator of the mean over
/// the batch.
#[derive(Debug)]
pub enum Counted {
    /// The number of examples.
    Examples(f64),
    /// The number of targets, or the sum of their weights: an f64 scalar on the device of the
    /// batch.
    OnDevice(Tensor),
}

impl Counted {
    /// Returns the weight. If it is on the device, waits for the device.
    ///
    /// # Errors
    /// When an earlier operation on the device failed.
    pub fn read(&self) -> Result<f64> {
        match self {
            Self::Examples(count) => Ok(*count),
            Self::OnDevice(count) => Ok(count.f_double_value(&[])?),
        }
    }
}

/// Checks and converts the scalar that a model's `counts` function returned for a batch.
///
/// # Errors
/// When the result of the function is not a scalar.
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

/// Adds up the class weights of the targets that are not -100. `weight` contains the weight of each
/// class, in the shape `[C]`. The result is an f64 scalar on the target's device. It is the
/// denominator of the mean in [`weighted_cross_entropy`](super::weighted_cross_entropy).
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
