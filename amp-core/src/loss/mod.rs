//! Losses with the names of torch.nn.functional. Each loss is a struct with torch's options. For
//! the most common losses there is also a function, which uses torch's default options. The result
//! is a scalar, the mean over the batch.
//!
//! If shapes or dtypes are invalid, the error names the loss, describes the output and the target,
//! and says what to change. Losses never broadcast. As in torch, losses under autocast are computed
//! in f32.
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
mod linear_cross_entropy;
mod overlap;
mod pairs;
mod probabilities;
mod sequence;
mod shapes;

pub use classes::{CrossEntropy, Nll};
pub use counted::{Counted, MeanOver, WeightOf, counted_as, sum_of_weights};
pub use elements::{
    BinaryCrossEntropy, BinaryCrossEntropyWithLogits, HingeEmbedding, Huber, KlDiv, L1, Mse,
    PoissonNll, SmoothL1,
};
#[doc(hidden)]
pub use linear_cross_entropy::ChunksOf;
pub(crate) use linear_cross_entropy::pays_in_chunks;
pub use overlap::{Dice, Focal};
pub use pairs::{CosineEmbedding, CosineSimilarity, GaussianNll, InfoNce, TripletMargin};
pub(crate) use probabilities::WatchedProbabilities;
pub use sequence::Ctc;
pub use shapes::ClassDim;
pub(crate) use shapes::{classes, elementwise, misfit};

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// The default of PyTorch's `ignore_index`: losses and metrics ignore targets with this value.
pub(crate) const IGNORED: i64 = -100;

/// A loss with its options. To use your own loss, implement this trait, and name the loss in
/// `#[loss(value = …)]`.
///
/// ```
/// use amp_core::{Result, loss::{Loss, MeanOver, at_least_f32}, tch::Tensor};
///
/// /// The mean of |x − y|³ over the elements.
/// struct Cubed;
///
/// impl Loss for Cubed {
///     fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
///         let distance = at_least_f32(output)?.f_sub(target)?.f_abs()?;
///         Ok(distance.f_pow_tensor_scalar(3)?.f_mean(distance.kind())?)
///     }
///
///     fn mean_over(&self) -> MeanOver<'_> {
///         MeanOver::Examples
///     }
/// }
///
/// let (output, target) = (Tensor::from_slice(&[2.0_f32, 0.0]), Tensor::from_slice(&[0.0_f32, 0.0]));
/// assert_eq!(Cubed.compute(&output, &target)?.double_value(&[]), 4.0);
/// # Ok::<(), amp_core::Error>(())
/// ```
pub trait Loss {
    /// Computes the loss of a batch from the model's output and the target. The loss is a scalar.
    ///
    /// # Errors
    /// When shapes or dtypes are invalid, or an option is out of range.
    fn compute(&self, output: &Tensor, target: &Tensor) -> Result<Tensor>;

    /// Returns the denominator of the loss's mean over a batch. When several batches are
    /// accumulated, or a batch is split because it does not fit into memory, each batch counts in
    /// proportion to its denominator. The accumulated gradients then equal the gradients of
    /// one large batch.
    fn mean_over(&self) -> MeanOver<'_>;

    /// Returns the reason why a step with this loss cannot be recorded as a CUDA graph, for example
    /// `ctc_loss reads lengths on the host`. Returns `None` if the step can be recorded.
    fn outside_graphs(&self) -> Option<&'static str> {
        None
    }
}

/// Converts a 16-bit tensor to f32, and returns every other tensor unchanged. If you write a loss,
/// call this function for the model's output: under most precisions the output has 16 bits, and
/// autocast runs only some operations in f32. The losses of this module convert their inputs
/// themselves.
///
/// ```
/// use amp_core::{loss, tch::{Kind, Tensor}};
///
/// let kind_of = |kind| Ok::<_, amp_core::Error>(
///     loss::at_least_f32(&Tensor::from_slice(&[1.0_f64]).to_kind(kind))?.kind(),
/// );
/// assert_eq!(kind_of(Kind::BFloat16)?, Kind::Float);
/// assert_eq!(kind_of(Kind::Double)?, Kind::Double);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When there is not enough memory.
pub fn at_least_f32(tensor: &Tensor) -> Result<Tensor> {
    match tensor.kind() {
        Kind::Half | Kind::BFloat16 => Ok(tensor.f_to_kind(Kind::Float)?),
        _ => Ok(tensor.shallow_clone()),
    }
}

/// Computes [`CrossEntropy`] with the default options.
///
/// ```
/// use amp_core::{loss, tch::Tensor};
///
/// // Two examples with three classes; the target -100 is ignored.
/// let logits = Tensor::from_slice(&[0.0_f64, 0.0, 0.0, 9.0, 0.0, 0.0]).view([2, 3]);
/// let classes = Tensor::from_slice(&[1_i64, -100]);
/// let loss = loss::cross_entropy(&logits, &classes)?.double_value(&[]);
/// assert!((loss - 3.0_f64.ln()).abs() < 1e-12);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When output and target are not as [`CrossEntropy`] requires.
pub fn cross_entropy(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    CrossEntropy::default().compute(output, target)
}

/// Computes [`CrossEntropy`] with class weights: `weight` contains the weight of each class, as
/// floating-point numbers of shape `[C]`. When the losses of several batches are averaged, weight
/// each batch by its [`sum_of_weights`].
///
/// # Errors
/// When output, target and weights are not as [`CrossEntropy`] requires.
pub fn weighted_cross_entropy(output: &Tensor, target: &Tensor, weight: &Tensor) -> Result<Tensor> {
    CrossEntropy { weight: Some(weight.shallow_clone()), ..CrossEntropy::default() }
        .compute(output, target)
}

/// Computes [`Nll`] with the default options.
///
/// # Errors
/// When output and target are not as [`Nll`] requires.
pub fn nll_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Nll::default().compute(output, target)
}

/// Computes the mean squared error: see [`Mse`].
///
/// # Errors
/// When the shapes differ or a dtype is not floating-point.
pub fn mse_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Mse.compute(output, target)
}

/// Computes the mean absolute error: see [`L1`].
///
/// # Errors
/// When the shapes differ or a dtype is not floating-point.
pub fn l1_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    L1.compute(output, target)
}

/// Computes [`Huber`] with δ = 1.
///
/// # Errors
/// When the shapes differ or a dtype is not floating-point.
pub fn huber_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Huber::default().compute(output, target)
}

/// Computes [`BinaryCrossEntropy`] of probabilities. Autocast on CUDA refuses this loss.
///
/// # Errors
/// When the shapes differ, a dtype is not floating-point, or autocast is on for CUDA.
pub fn binary_cross_entropy(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    BinaryCrossEntropy::default().compute(output, target)
}

/// Computes [`BinaryCrossEntropyWithLogits`] with the default options.
///
/// # Errors
/// When output and target are not as [`BinaryCrossEntropyWithLogits`] requires.
pub fn binary_cross_entropy_with_logits(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    BinaryCrossEntropyWithLogits::default().compute(output, target)
}

/// Adds the name of the loss, the shapes and the range of classes to an error from libtorch, which
/// is most often about a class that is out of range.
fn explained(what: &str, ignored: i64, error: Error, output: &Tensor, target: &Tensor) -> Error {
    match &error {
        Error::Torch(text) if !error.is_out_of_memory() => {
            let why = format!("{text} Classes are numbered from 0; the class {ignored} is ignored");
            misfit(what, output, target, &why)
        }
        _ => error,
    }
}

/// Adds the shapes and dtypes of output and target to the error of a user's loss, if libtorch
/// refused the arguments of an operation.
///
/// # Errors
/// The error of `loss`, with the added text.
#[doc(hidden)]
pub fn own(loss: Result<Tensor>, output: &Tensor, target: &Tensor) -> Result<Tensor> {
    loss.map_err(|error| match &error {
        Error::Torch(text) if !error.is_out_of_memory() => {
            misfit("loss", output, target, &with_remedy(text))
        }
        _ => error,
    })
}

/// Explains an error from a loss's backward pass. A loss without a gradient depends on no trained
/// parameter. In a dtype error, says which tensors to convert: for some losses libtorch accepts an
/// output and a target of different dtypes in the forward pass, and fails in the backward pass.
pub(crate) fn in_backward(error: Error) -> Error {
    match &error {
        Error::Torch(text) if text.contains("does not require grad") => Error::config(
            "the loss depends on no trained parameter, so that the backward pass gives no gradient: \
             compute it from the output of `forward`, without `detach`, without `no_grad` and \
             without reading it as a number in between",
        ),
        Error::Torch(text) if text.contains("dtype") && !error.is_out_of_memory() => {
            Error::config(format!("the loss's backward pass: {}", with_remedy(text)))
        }
        _ => error,
    }
}

fn with_remedy(text: &str) -> String {
    match ["dtype", "scalar type"].iter().any(|sign| text.contains(sign)) {
        true => format!(
            "{text}; convert target and class weights to the output's dtype, as \
             `target.to_kind(output.kind())` does"
        ),
        false => text.to_owned(),
    }
}
