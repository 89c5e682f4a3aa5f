//! Loss functions by torch.nn.functional's names; each returns a scalar, the mean over the batch.
//!
//! Shapes and dtypes that do not fit are errors that name the loss, both tensors and the remedy.
//! Nothing is broadcast.

mod counted;
mod shapes;

pub use counted::{Counted, counted_as, sum_of_weights};
pub(crate) use shapes::{classes, elementwise, misfit};

use tch::{Device, Reduction, Tensor};

use crate::{
    Error, Result, ffi,
    precision::{dtype_name, is_floating},
};

/// The class of a target that losses and metrics leave out, as in PyTorch.
pub(crate) const IGNORED: i64 = -100;

/// Cross entropy of logits `[N, C, …]` against int64 classes `[N, …]`; those of -100 are left out of
/// the mean. Logits with classes last (`[N, L, C]` against `[N, L]`) are flattened; where both readings
/// fit, as with `[N, 5, 5]` against `[N, 5]`, the loss is refused. A floating target of the logits' shape
/// `[N, C, …]` holds the probability of each class.
///
/// # Errors
/// When shapes or dtypes do not fit, or a class is out of range. On CUDA a class out of range is an error
/// of the device, as in PyTorch.
pub fn cross_entropy(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    const NAME: &str = "cross_entropy";
    if is_floating(target.kind()) && output.size() == target.size() && output.dim() > 1 {
        let (output, target) = elementwise(NAME, output, target)?;
        return ffi::cross_entropy(&output, &target);
    }
    let (logits, of) = classes(NAME, output, target)?;
    ffi::cross_entropy(&logits, &of).map_err(|error| explained(NAME, error, output, target))
}

/// [`cross_entropy`] of int64 classes in which each target counts by the weight of its class, `[C]` and
/// floating: Σ wᵢ lᵢ / Σ wᵢ over the targets that are not -100. What a batch counts in a mean over several
/// is [`sum_of_weights`].
///
/// ```no_run,standalone_crate
/// # use amp_core::prelude::*;
/// #[derive(LightningModule)]
/// #[loss(
///     with = |output, target| loss::weighted_cross_entropy(output, target, &self.rare),
///     of = examples,
///     counts = |target| loss::sum_of_weights(target, &self.rare)
/// )]
/// #[optimizer(sgd, lr = 0.1)]
/// struct Net {
///     #[buffer(shape = [10], init = ones)]
///     rare: Tensor,
///     #[layer(linear(64, 10))]
///     head: Linear,
/// }
/// # fn main() {}
/// ```
///
/// # Errors
/// As those of [`cross_entropy`], or when there is not one weight for each class.
pub fn weighted_cross_entropy(output: &Tensor, target: &Tensor, weight: &Tensor) -> Result<Tensor> {
    const NAME: &str = "weighted_cross_entropy";
    let (logits, of) = classes(NAME, output, target)?;
    let (count, sizes) = (logits.size()[1], weight.size());
    if sizes != [count] || !is_floating(weight.kind()) {
        let kind = dtype_name(weight.kind());
        let why = format!("the weights are {kind} {sizes:?}, but must be floating and [{count}]");
        return Err(misfit(NAME, output, target, &why));
    }
    let weight = weight.f_to_device(logits.device())?.f_to_kind(logits.kind())?;
    let loss = logits.f_cross_entropy_loss(&of, Some(weight), Reduction::Mean, IGNORED, 0.0);
    loss.map_err(|error| explained(NAME, error.into(), output, target))
}

/// Negative log likelihood of log probabilities against int64 classes, in the shapes of
/// [`cross_entropy`]; classes of -100 are left out of the mean.
///
/// # Errors
/// As those of [`cross_entropy`].
pub fn nll_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    const NAME: &str = "nll_loss";
    let (logits, of) = classes(NAME, output, target)?;
    let loss = logits.f_nll_loss_nd(&of, None::<Tensor>, Reduction::Mean, IGNORED);
    loss.map_err(|error| explained(NAME, error.into(), output, target))
}

/// Mean squared error of two tensors of one shape.
///
/// # Errors
/// When the shapes differ or one is not floating.
pub fn mse_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (output, target) = elementwise("mse_loss", output, target)?;
    Ok(output.f_mse_loss(&target, Reduction::Mean)?)
}

/// Mean absolute error of two tensors of one shape.
///
/// # Errors
/// When the shapes differ or one is not floating.
pub fn l1_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (output, target) = elementwise("l1_loss", output, target)?;
    Ok(output.f_l1_loss(&target, Reduction::Mean)?)
}

/// Huber's loss with δ = 1 of two tensors of one shape: d²/2 for |d| < 1, otherwise |d| − ½.
///
/// # Errors
/// When the shapes differ or one is not floating.
pub fn huber_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (output, target) = elementwise("huber_loss", output, target)?;
    Ok(output.f_huber_loss(&target, Reduction::Mean, 1.0)?)
}

/// Binary cross entropy of probabilities. CUDA autocast refuses it.
///
/// # Errors
/// When the shapes differ, one is not floating, or under CUDA autocast.
pub fn binary_cross_entropy(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    let (output, target) = elementwise("binary_cross_entropy", output, target)?;
    Ok(output.f_binary_cross_entropy(&target, None::<Tensor>, Reduction::Mean)?)
}

/// Binary cross entropy of logits against probabilities, from 0 to 1.
///
/// # Errors
/// When the shapes differ, one is not floating, or a target on the CPU is not from 0 to 1: of labels like
/// -1 the loss has no minimum. On CUDA that is not looked for.
pub fn binary_cross_entropy_with_logits(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    const NAME: &str = "binary_cross_entropy_with_logits";
    let none = None::<Tensor>;
    if target.device() == Device::Cpu && is_floating(target.kind()) && target.numel() > 0 {
        let [low, high] = [target.f_min()?, target.f_max()?];
        let (low, high) = (low.f_double_value(&[])?, high.f_double_value(&[])?);
        if low < 0.0 || high > 1.0 {
            let why = format!("targets are from 0 to 1, not from {low} to {high}");
            return Err(misfit(NAME, output, target, &why));
        }
    }
    let (output, target) = elementwise(NAME, output, target)?;
    Ok(output.f_binary_cross_entropy_with_logits(&target, none, None::<Tensor>, Reduction::Mean)?)
}

/// Adds to what libtorch says of a class out of range which loss and which shapes it is about.
fn explained(what: &str, error: Error, output: &Tensor, target: &Tensor) -> Error {
    match &error {
        Error::Torch(text) if !error.is_out_of_memory() => {
            let why = format!("{text} Classes count from 0; -100 is left out");
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
