//! What the loss of a batch counts in a mean over several batches.

use std::fmt;

use tch::{Kind, Tensor};

use super::IGNORED;
use crate::{Error, Result};

/// A function from a target to the sum of what it counts.
pub type WeightOf<'a> = Box<dyn Fn(&Tensor) -> Result<Tensor> + 'a>;

/// What a loss's mean over a batch is over.
pub enum MeanOver<'a> {
    /// Its examples; in a batch that has a tensor of weights, that loss is taken to be weighted by them.
    Examples,
    /// The targets, int64 classes, that are not `ignored`, each by the `weight`, `[C]`, of its class. For
    /// targets of another dtype [`Examples`](Self::Examples).
    Classes {
        /// The class that is left out.
        ignored: i64,
        /// One for each class; 1 without it.
        weight: Option<&'a Tensor>,
    },
    /// What this function makes of the target: a scalar on its device.
    Weights(WeightOf<'a>),
    /// The batch as a whole, because the loss compares its examples with each other: such a batch never runs in
    /// parts.
    Batch,
}

impl MeanOver<'_> {
    /// What the targets of a batch count, an f64 scalar on their device; `None` where each example counts
    /// one. `none_left_out` says that no target is known to be -100, so that nothing needs to be counted.
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
    weights_of_classes(target, weight, IGNORED)
}

fn weights_of_classes(target: &Tensor, weight: &Tensor, ignored: i64) -> Result<Tensor> {
    let counts = target.f_ne(ignored)?;
    let places = target.f_mul(&counts)?.f_reshape([-1])?;
    let weight = weight.f_to_device(target.device())?.f_to_kind(Kind::Double)?;
    let weights = weight.f_index_select(0, &places)?;
    Ok(weights.f_mul(&counts.f_reshape([-1])?)?.f_sum(Kind::Double)?)
}
