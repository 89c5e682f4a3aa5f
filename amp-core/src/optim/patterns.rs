//! Patterns that select parameters by their names.

use wildmatch::WildMatch;

use crate::{Error, Result, error::some_names, nn::Parameter};

/// Patterns for the dotted names of parameters: `*` matches any text, `?` any single character.
#[derive(Debug, Clone)]
pub(crate) struct Patterns(Vec<WildMatch>);

impl<P: Into<String>> FromIterator<P> for Patterns {
    fn from_iter<I: IntoIterator<Item = P>>(patterns: I) -> Self {
        Self(patterns.into_iter().map(|pattern| WildMatch::new(&pattern.into())).collect())
    }
}

impl Patterns {
    /// Returns whether one of the patterns matches the name.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// Returns an error if a pattern matches no name, for example because of a misspelling. The
    /// error begins with `what`, which says where the patterns are given, for example `freeze`.
    pub(crate) fn match_something(&self, what: &str, parameters: &[Parameter]) -> Result<()> {
        let idle = |pattern: &&WildMatch| {
            !parameters.iter().any(|parameter| pattern.matches(&parameter.name))
        };
        let Some(idle) = self.0.iter().find(idle) else {
            return match self.0.is_empty() {
                false => Ok(()),
                true => Err(Error::config(format!("{what}: the list of patterns is empty"))),
            };
        };
        let names = some_names(parameters.iter().map(|parameter| parameter.name.as_str()));
        Err(Error::config(format!(
            "{what}: no parameter matches `{idle}`: the parameters are called {names}"
        )))
    }
}
