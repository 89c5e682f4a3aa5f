//! Collects all errors that are found in a struct, so that one compilation reports all of them.

use std::{cell::RefCell, fmt::Display, thread};

use proc_macro2::Span;
use quote::ToTokens;

/// A warning.
#[derive(Debug)]
pub(crate) struct Warning {
    /// The token that rustc underlines.
    pub(crate) at: Span,
    /// The name of the rule in SCREAMING_SNAKE_CASE. rustc prints the name in the note of the
    /// warning.
    pub(crate) rule: &'static str,
    /// What is wrong, and how to correct it.
    pub(crate) note: String,
}

#[derive(Default)]
struct Collected {
    errors: Vec<syn::Error>,
    warnings: Vec<Warning>,
}

/// Collects errors and warnings. Call [`finish`](Self::finish): a collector that is dropped without
/// this call panics, because an error would be lost.
pub(crate) struct Diagnostics(RefCell<Option<Collected>>);

impl Diagnostics {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(Some(Collected::default())))
    }

    /// Adds an error. rustc underlines the tokens `at`.
    pub(crate) fn error(&self, at: impl ToTokens, message: impl Display) {
        self.push(syn::Error::new_spanned(at, message));
    }

    /// Adds an error that syn has returned.
    pub(crate) fn push(&self, error: syn::Error) {
        if let Some(collected) = self.0.borrow_mut().as_mut() {
            collected.errors.push(error);
        }
    }

    /// Adds a warning for which rustc underlines `at`. `rule` is the name of the violated rule.
    pub(crate) fn warn(&self, at: Span, rule: &'static str, note: impl Into<String>) {
        if let Some(collected) = self.0.borrow_mut().as_mut() {
            collected.warnings.push(Warning { at, rule, note: note.into() });
        }
    }

    /// Returns `value` and the warnings. If errors were collected, returns the errors. `value` may
    /// be `None` only if an error was collected.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<Warning>), syn::Error> {
        let Collected { errors, warnings } = self.0.take().unwrap_or_default();
        let all = errors.into_iter().reduce(|mut all, error| {
            all.combine(error);
            all
        });
        match (all, value) {
            (Some(errors), _) => Err(errors),
            (None, Some(value)) => Ok((value, warnings)),
            (None, None) => Err(syn::Error::new(
                Span::call_site(),
                "bug in amp-derive: the struct was refused without a reason",
            )),
        }
    }
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        if self.0.borrow().is_some() && !thread::panicking() {
            panic!("diagnostics were dropped unread");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "dropped unread")]
    fn dropping_it_unread_panics() {
        drop(Diagnostics::new());
    }

    #[test]
    fn a_missing_value_is_never_silent() {
        assert!(Diagnostics::new().finish(None::<()>).is_err());
    }

    #[test]
    fn errors_come_together_and_win_over_the_value() {
        let diag = Diagnostics::new();
        diag.error(syn::Ident::new("a", Span::call_site()), "first");
        diag.error(syn::Ident::new("b", Span::call_site()), "second");
        diag.warn(Span::call_site(), "RULE", "advice");
        let errors = diag.finish(Some(())).expect_err("two errors");
        let texts: Vec<String> = errors.into_iter().map(|error| error.to_string()).collect();
        assert_eq!(texts, ["first", "second"]);
    }
}
