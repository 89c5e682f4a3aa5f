//! Selects the parameters that an optimizer or a parameter group trains.

use super::Patterns;
use crate::{Error, Result, error::some_names, parameter::Parameter};

/// Parameters selected by name and by number of dimensions. Functions that take `Into<Selection>`
/// also accept a list of name patterns: `config.params(["head.*"])`.
///
/// In a pattern `*` matches any text including dots, and `?` any single character: `head.*`,
/// `*.bias`.
///
/// ```
/// use amp_core::optim::{AdamW, OptimizerConfig, ParamGroups, Selection};
/// // No decay for biases and the weights of norms.
/// let base = AdamW { weight_decay: 0.1, ..Default::default() };
/// let vectors = AdamW { weight_decay: 0.0, ..base };
/// let groups = ParamGroups::new(base).group(Selection::all().ndim(1), vectors);
/// let config = OptimizerConfig::new(groups);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The patterns of the selected names. `None` selects all names.
    named: Option<Patterns>,
    except: Option<Patterns>,
    ndim: Option<usize>,
}

impl<I: IntoIterator<Item = P>, P: Into<String>> From<I> for Selection {
    fn from(patterns: I) -> Self {
        Self { named: Some(patterns.into_iter().collect()), ..Self::default() }
    }
}

impl Selection {
    /// Selects every parameter.
    pub fn all() -> Self {
        Self::default()
    }

    /// Excludes the parameters whose names match one of these patterns.
    #[must_use]
    pub fn except<P: Into<String>>(self, patterns: impl IntoIterator<Item = P>) -> Self {
        Self { except: Some(patterns.into_iter().collect()), ..self }
    }

    /// Selects only the parameters with this number of dimensions. Matrices have 2 dimensions.
    /// Biases and the weights of norms have 1.
    #[must_use]
    pub fn ndim(self, ndim: usize) -> Self {
        Self { ndim: Some(ndim), ..self }
    }

    pub(super) fn matches(&self, parameter: &Parameter) -> bool {
        let Parameter { name, tensor } = parameter;
        self.named.as_ref().is_none_or(|patterns| patterns.matches(name))
            && !self.except.as_ref().is_some_and(|patterns| patterns.matches(name))
            && self.ndim.is_none_or(|ndim| tensor.dim() == ndim)
    }

    /// Returns an error if a pattern matches no parameter, for example because of a misspelling, or
    /// if no parameter is selected.
    pub(super) fn selects_something(&self, parameters: &[Parameter]) -> Result<()> {
        for patterns in [&self.named, &self.except].into_iter().flatten() {
            patterns.match_something("optimizer", parameters)?;
        }
        if parameters.iter().any(|parameter| self.matches(parameter)) {
            return Ok(());
        }
        let dimensions =
            self.ndim.map(|ndim| format!(" with {ndim} dimensions")).unwrap_or_default();
        let names = some_names(parameters.iter().map(|parameter| parameter.name.as_str()));
        Err(Error::config(format!(
            "optimizer: the selection contains no parameter{dimensions} of the model, whose \
             parameters are called {names}: select other parameters, or exclude fewer"
        )))
    }
}
