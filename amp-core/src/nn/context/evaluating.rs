//! Detects whether a training context is created while a model is evaluated.

use std::{cell::Cell, marker::PhantomData};

thread_local! {
    /// Whether a model is being evaluated on this thread.
    static EVALUATING: Cell<bool> = const { Cell::new(false) };
    /// Whether a training context was created during the evaluation.
    static TRAINED: Cell<bool> = const { Cell::new(false) };
}

/// A guard. While it exists, a model is being evaluated (and not trained) on this thread.
pub(crate) struct Evaluating(PhantomData<*const ()>);

impl Evaluating {
    pub(crate) fn begin() -> Self {
        EVALUATING.set(true);
        Self(PhantomData)
    }
}

impl Drop for Evaluating {
    fn drop(&mut self) {
        EVALUATING.set(false);
    }
}

/// Is called for each new context. If this is a training context and a model is being evaluated,
/// sets the flag that [`take_trained_in_evaluation`] returns.
pub(super) fn note(training: bool) {
    if training && EVALUATING.get() {
        TRAINED.set(true);
    }
}

/// Returns whether a training context was created during an evaluation, and resets the flag.
pub(crate) fn take_trained_in_evaluation() -> bool {
    TRAINED.replace(false)
}
