//! When the hooks of a model, or a callback, run: after a training step or within it.

use crate::loss::Loss;

/// Whether an observer (the model's hooks, or a callback) runs after a training step or within it.
/// The trainer runs a step as a CUDA graph only if no observer runs within the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepAccess {
    /// The observer is called once per step, in the order of the steps. Later steps may already be
    /// running on the device when it is called. An action that it requests, such as saving or
    /// stopping, is executed only after those steps.
    Deferred,
    /// The observer is called after each step, before the next step begins, so that the observer
    /// can read the model as it is after the step.
    PerStep,
    /// The observer is called within the step, for example before the optimizer's step, or it
    /// changes the following step. A step with such an observer cannot run as a CUDA graph. The
    /// text is the reason, such as `the model has the hook on_before_optimizer_step`.
    InStep(&'static str),
}

impl StepAccess {
    /// Returns what a step with this loss requires: [`InStep`](Self::InStep) if the loss cannot run
    /// in a CUDA graph, and otherwise [`Deferred`](Self::Deferred).
    pub fn of_loss(loss: &impl Loss) -> Self {
        loss.outside_graphs().map_or(Self::Deferred, Self::InStep)
    }

    /// Returns the stricter of two requirements, which satisfies both observers.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::InStep(_), _) | (Self::PerStep, Self::Deferred) => self,
            (Self::Deferred, _) | (_, Self::InStep(_)) => other,
            (Self::PerStep, Self::PerStep) => self,
        }
    }
}
