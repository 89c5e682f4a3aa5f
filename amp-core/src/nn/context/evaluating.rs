//! Runs a part of a forward pass in evaluation mode, and detects whether a training context is
//! created while a model is evaluated.

use std::{cell::Cell, marker::PhantomData};

use super::Context;
use crate::Result;

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

/// Is called for each new context. If the new context is a training context and a model is being
/// evaluated, sets the flag that [`take_trained_in_evaluation`] returns.
pub(super) fn note(training: bool) {
    if training && EVALUATING.get() {
        TRAINED.set(true);
    }
}

/// Returns whether a training context was created during an evaluation, and resets the flag.
pub(crate) fn take_trained_in_evaluation() -> bool {
    TRAINED.replace(false)
}

/// A guard. When it is dropped, the context returns to the mode (training or evaluation) that it
/// had before.
struct Former<'c> {
    cx: &'c Context,
    training: bool,
    dropout: bool,
}

impl Drop for Former<'_> {
    fn drop(&mut self) {
        self.cx.training.set(self.training);
        self.cx.dropout.set(self.dropout);
    }
}

impl Context {
    /// Runs `body` in evaluation mode, as torch's `module.eval()` does for a module inside a model
    /// that is trained. In evaluation mode dropout is off, and batch norms use their running
    /// statistics and do not change them. A frozen teacher or a frozen backbone usually needs
    /// evaluation mode, because freezing parameters changes neither dropout nor batch statistics.
    ///
    /// ```no_run,standalone_crate
    /// use amp_core::{prelude::*, tch};
    ///
    /// /// Returns the logits of a student, and of a teacher that is not trained.
    /// #[derive(Module)]
    /// #[forward(|x| -> Result<(Tensor, Tensor)> {
    ///     let wise = tch::no_grad(|| cx.in_evaluation(|| teacher(x)))?;
    ///     Ok((student(x)?, wise))
    /// })]
    /// struct Distilled {
    ///     #[layer(sequential(linear(16, 128), batch_norm1d(128), relu, dropout(0.2), linear(128, 5)))]
    ///     teacher: Sequential,
    ///     #[layer(linear(16, 5))]
    ///     student: Linear,
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When `body` fails.
    pub fn in_evaluation<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let _former =
            Former { cx: self, training: self.training.get(), dropout: self.dropout.get() };
        self.training.set(false);
        self.dropout.set(false);
        body()
    }
}
