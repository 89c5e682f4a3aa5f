//! Functions with which the gate reads learning rates and gradients in the trainer's hooks.

use amp_core::{
    Hook, Result,
    precision::{Gradients, Unscaled},
    tch::{Tensor, no_grad},
};

/// Returns the learning rates of all groups of all optimizers.
pub(super) fn rates(hook: &Hook<'_>) -> Vec<f64> {
    let groups = hook.optimizers().iter().flat_map(|scheduled| scheduled.rates());
    groups.map(|group| group.rates.lr).collect()
}

/// Returns pairs of a parameter's name and a copy of its gradient.
pub(super) fn copies<T: FromIterator<(String, Tensor)>>(
    gradients: &Gradients<Unscaled>,
) -> Result<T> {
    let named = gradients.named();
    named.map(|(name, gradient)| Ok((name.to_owned(), copy_of(gradient)?))).collect()
}

/// Returns a copy of the tensor on the same device and in the same dtype. (A copy in f64 on the
/// host would take too much memory.)
pub(super) fn copy_of(tensor: &Tensor) -> Result<Tensor> {
    Ok(no_grad(|| tensor.f_detach()?.f_detach_copy())?)
}
