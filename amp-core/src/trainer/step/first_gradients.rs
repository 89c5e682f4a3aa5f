//! Checks the gradients of a run's first batch.

use tch::Tensor;

use crate::{Error, LightningModule, Result, error::some_names, nn};

/// Checks that the model's step has not run a backward pass of its own: the gradients of the
/// trainer's backward pass would be added to its gradients.
///
/// # Errors
/// When a parameter already has a gradient that is not zero.
pub(super) fn none_yet(model: &dyn LightningModule) -> Result<()> {
    for parameter in nn::parameters(model) {
        if has_gradient(&parameter.tensor)? {
            return Err(Error::config(format!(
                "`training_step` has run a backward pass: `{}` already has a gradient, to which the \
                 trainer would add that of the returned loss; return the loss without `backward`, or \
                 write the step as a `manual_step`",
                parameter.name
            )));
        }
    }
    Ok(())
}

/// Returns whether the parameter has a gradient that is not zero.
pub(super) fn has_gradient(parameter: &Tensor) -> Result<bool> {
    let gradient = parameter.f_grad()?;
    Ok(gradient.defined() && gradient.f_any()?.f_int64_value(&[])? != 0)
}

/// Returns a note if parameters that require a gradient have received none. Returns `None` if no
/// parameter has received a gradient, because the batch then has no targets that count.
pub(super) fn missing(model: &dyn LightningModule) -> Option<String> {
    let all = nn::parameters(model);
    let trained = all.iter().filter(|one| one.tensor.requires_grad());
    let (with, without): (Vec<_>, Vec<_>) = trained.partition(|one| one.tensor.grad().defined());
    (!with.is_empty() && !without.is_empty()).then(|| {
        format!(
            "the loss of the first batch gives no gradient to {}: if no later step does, they are \
             never trained; let the loss depend on them, or freeze them with optimization.freeze",
            some_names(without.iter().map(|one| one.name.as_str()))
        )
    })
}
