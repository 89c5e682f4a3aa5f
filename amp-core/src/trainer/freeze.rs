//! Parameters that a run leaves as they are.

use crate::{
    Error, LightningModule, Result,
    nn::{self, Parameter},
    optim::Patterns,
    parameter::Frozen,
};

/// Freezes the parameters whose names match a pattern, and returns the others.
pub(super) fn freeze(
    model: &dyn LightningModule,
    patterns: &[String],
) -> Result<(Frozen, Vec<Parameter>)> {
    let parameters = nn::parameters(model);
    if patterns.is_empty() {
        return Ok((Frozen::new(Vec::new()), parameters));
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
    let frozen = frozen.into_iter().map(|parameter| parameter.tensor).collect();
    Ok((Frozen::new(frozen), trained))
}
