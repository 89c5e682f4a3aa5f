//! Whether code makes a context of training while a model is evaluated.

use std::{cell::Cell, marker::PhantomData};

thread_local! {
    /// Whether a model is evaluated on this thread.
    static EVALUATING: Cell<bool> = const { Cell::new(false) };
    /// Whether a context of training was made meanwhile.
    static TRAINED: Cell<bool> = const { Cell::new(false) };
}

/// A model is evaluated on this thread while this lives.
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

/// Follows the making of a context.
pub(super) fn note(training: bool) {
    if training && EVALUATING.get() {
        TRAINED.set(true);
    }
}

/// Whether a context of training was made during an evaluation since the last call.
pub(crate) fn take_trained_in_evaluation() -> bool {
    TRAINED.replace(false)
}
