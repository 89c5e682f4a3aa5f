//! Losses by torch.nn.functional's names: a function each with torch's defaults, and a value each with torch's
//! options. Both give a scalar, the mean over the batch.
//!
//! Shapes and dtypes that do not fit are errors that name the loss, both tensors and the remedy.
//! Nothing is broadcast. Under autocast every loss is computed in f32, as torch computes its own.
//!
//! ```
//! use amp_core::{loss::{CrossEntropy, Loss}, tch::{Reduction, Tensor}};
//!
//! # fn main() -> amp_core::Result<()> {
//! let (logits, target) = (Tensor::from_slice(&[2.0, 0.0, 0.0, 1.0]).view([2, 2]), Tensor::from_slice(&[0_i64, 1]));
//! let smooth = CrossEntropy { label_smoothing: 0.1, ..Default::default() };
//! let mean = smooth.compute(&logits, &target)?;
//! let each = smooth.reduced(&logits, &target, Reduction::None)?;
//! assert_eq!((mean.size(), each.size()), (vec![], vec![2]));
//! # Ok(())
//! # }
//! ```

mod classes;
mod counted;
mod elements;
mod overlap;
mod pairs;
mod sequence;
mod shapes;

pub use classes::{CrossEntropy, Nll};
pub use counted::{Counted, MeanOver, WeightOf, counted_as, sum_of_weights};
pub use elements::{
    BinaryCrossEntropy, BinaryCrossEntropyWithLogits, HingeEmbedding, Huber, KlDiv, L1, Mse,
    PoissonNll, SmoothL1,
};
pub use overlap::{Dice, Focal};
pub use pairs::{CosineEmbedding, CosineSimilarity, GaussianNll, InfoNce, TripletMargin};
pub use sequence::Ctc;
pub(crate) use shapes::{classes, elementwise, misfit};

use tch::Tensor;

use crate::{Error, Result};

/// The class of a target that losses and metrics leave out, as in PyTorch.
pub(crate) const IGNORED: i64 = -100;

/// A loss with its options. Implement it for a loss of your own, and name the value in
/// `#[loss(value = …)]`.
pub trait Loss {
    /// The loss of a batch, a scalar, from what the model gave and what it should have given.
    ///
    /// # Errors
    /// When shapes or dtypes do not fit, or an option is out of range.
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor>;

    /// What the mean is over: by this the batches of an accumulation window, and the parts of a batch that
    /// memory is short for, weigh so that their gradients add up to the large batch's.
    fn mean_over(&self) -> MeanOver<'_>;

    /// Why no CUDA graph can hold a step with this loss, as in `ctc_loss reads lengths on the host`: because it waits
    /// for the device or decides on the host by its values. `None` unless it is given.
    fn outside_graphs(&self) -> Option<&'static str> {
        None
    }
}

/// [`CrossEntropy`] with its defaults.
///
/// # Errors
/// As [`CrossEntropy`]'s.
pub fn cross_entropy(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    CrossEntropy::default().compute(output, target)
}

/// [`CrossEntropy`] in which each target counts by the weight of its class, `[C]` and floating. What a batch
/// counts in a mean over several is [`sum_of_weights`].
///
/// # Errors
/// As [`CrossEntropy`]'s.
pub fn weighted_cross_entropy(output: &Tensor, target: &Tensor, weight: &Tensor) -> Result<Tensor> {
    CrossEntropy { weight: Some(weight.shallow_clone()), ..CrossEntropy::default() }
        .compute(output, target)
}

/// [`Nll`] with its defaults.
///
/// # Errors
/// As [`Nll`]'s.
pub fn nll_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Nll::default().compute(output, target)
}

/// Mean squared error: see [`Mse`].
///
/// # Errors
/// When the shapes differ or one is not floating.
pub fn mse_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Mse.compute(output, target)
}

/// Mean absolute error: see [`L1`].
///
/// # Errors
/// When the shapes differ or one is not floating.
pub fn l1_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    L1.compute(output, target)
}

/// [`Huber`] with δ = 1.
///
/// # Errors
/// When the shapes differ or one is not floating.
pub fn huber_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Huber::default().compute(output, target)
}

/// [`BinaryCrossEntropy`] of probabilities. CUDA autocast refuses it.
///
/// # Errors
/// When the shapes differ, one is not floating, or under CUDA autocast.
pub fn binary_cross_entropy(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    BinaryCrossEntropy::default().compute(output, target)
}

/// [`BinaryCrossEntropyWithLogits`] with its defaults.
///
/// # Errors
/// As [`BinaryCrossEntropyWithLogits`]'s.
pub fn binary_cross_entropy_with_logits(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    BinaryCrossEntropyWithLogits::default().compute(output, target)
}

/// Adds to what libtorch says of a class out of range which loss and which shapes it is about.
fn explained(what: &str, ignored: i64, error: Error, output: &Tensor, target: &Tensor) -> Error {
    match &error {
        Error::Torch(text) if !error.is_out_of_memory() => {
            let why = format!("{text} Classes count from 0; {ignored} is left out");
            misfit(what, output, target, &why)
        }
        _ => error,
    }
}

/// A loss of the user's own, with its arguments in the error where libtorch refuses them.
///
/// # Errors
/// What `loss` fails with.
#[doc(hidden)]
pub fn own(loss: Result<Tensor>, output: &Tensor, target: &Tensor) -> Result<Tensor> {
    loss.map_err(|error| match &error {
        Error::Torch(text) if !error.is_out_of_memory() => {
            misfit("loss", output, target, &with_remedy(text))
        }
        _ => error,
    })
}

/// What the backward pass of a loss fails with. libtorch computes a loss of two dtypes, and refuses its
/// gradient.
pub(crate) fn in_backward(error: Error) -> Error {
    match &error {
        Error::Torch(text) if text.contains("dtype") && !error.is_out_of_memory() => {
            Error::config(format!("the loss's backward pass: {}", with_remedy(text)))
        }
        _ => error,
    }
}

fn with_remedy(text: &str) -> String {
    match ["dtype", "scalar type"].iter().any(|sign| text.contains(sign)) {
        true => format!(
            "{text}; give target and class weights the output's dtype, as \
             `target.to_kind(output.kind())` does"
        ),
        false => text.to_owned(),
    }
}
