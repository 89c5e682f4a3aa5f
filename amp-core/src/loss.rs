//! Loss functions by torch.nn.functional's names; each returns a scalar, the mean over the batch.

use tch::{Reduction, Tensor};

use crate::{Result, ffi};

/// Cross entropy of logits `[N, C, …]` against int64 classes `[N, …]`; other shapes with classes
/// last (`[N, L, C]` against `[N, L]`) are flattened.
///
/// # Errors
/// When shapes do not fit.
pub fn cross_entropy(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    with_flat_classes(output, target, ffi::cross_entropy)
}

/// Negative log likelihood of log probabilities `[N, C]` against int64 classes `[N]`.
///
/// # Errors
/// When shapes do not fit.
pub fn nll_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok(output.f_nll_loss(target, None::<Tensor>, Reduction::Mean, -100)?)
}

/// Mean squared error.
///
/// # Errors
/// When shapes do not fit.
pub fn mse_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok(output.f_mse_loss(target, Reduction::Mean)?)
}

/// Mean absolute error.
///
/// # Errors
/// When shapes do not fit.
pub fn l1_loss(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok(output.f_l1_loss(target, Reduction::Mean)?)
}

/// Binary cross entropy of probabilities. CUDA autocast refuses it.
///
/// # Errors
/// When shapes do not fit, or under CUDA autocast.
pub fn binary_cross_entropy(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok(output.f_binary_cross_entropy(target, None::<Tensor>, Reduction::Mean)?)
}

/// Binary cross entropy of logits.
///
/// # Errors
/// When shapes do not fit.
pub fn binary_cross_entropy_with_logits(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    let none = None::<Tensor>;
    Ok(output.f_binary_cross_entropy_with_logits(target, none, None::<Tensor>, Reduction::Mean)?)
}

/// Calls `compute` with `[N, L, C]` and `[N, L]` as `[N·L, C]` and `[N·L]`; anything else as it is.
pub(crate) fn with_flat_classes<T>(
    output: &Tensor,
    target: &Tensor,
    compute: impl FnOnce(&Tensor, &Tensor) -> Result<T>,
) -> Result<T> {
    if output.dim() == 3 && target.dim() == 2 {
        return compute(&output.f_flatten(0, 1)?, &target.f_flatten(0, 1)?);
    }
    compute(output, target)
}
