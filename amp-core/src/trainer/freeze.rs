//! Parameters that a run leaves as they are.

use tch::Tensor;

use crate::{
    Error, LightningModule, Result,
    nn::{self, Parameter},
    optim::Patterns,
};

/// Parameters that require no gradient while this lives.
pub(super) struct Frozen(Vec<Tensor>);

impl Frozen {
    /// Freezes the parameters whose names match a pattern, and returns the others.
    pub(super) fn new(
        model: &dyn LightningModule,
        patterns: &[String],
    ) -> Result<(Self, Vec<Parameter>)> {
        let parameters = nn::parameters(model);
        if patterns.is_empty() {
            return Ok((Self(Vec::new()), parameters));
        }
        let frozen: Patterns = patterns.iter().map(String::as_str).collect();
        frozen.match_something("freeze", &parameters)?;
        let (frozen, trained): (Vec<_>, Vec<_>) =
            parameters.into_iter().partition(|parameter| frozen.matches(&parameter.name));
        if trained.is_empty() {
            return Err(Error::config(format!(
                "freeze: {} leaves no parameter to train: name fewer",
                patterns.join(", ")
            )));
        }
        let tensors = frozen.into_iter().map(|parameter| parameter.tensor);
        let frozen: Vec<Tensor> = tensors.map(|tensor| tensor.set_requires_grad(false)).collect();
        Ok((Self(frozen), trained))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.iter().for_each(|tensor| drop(tensor.set_requires_grad(true)));
    }
}
