//! How closely the observers of a run must follow its steps.

use crate::loss::Loss;

/// How closely an observer must follow a step. The trainer decides by it whether the step may run
/// as a CUDA graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepAccess {
    /// The observer is called for steps in order, possibly while later steps are in flight. Its
    /// requests are executed when those steps have ended.
    Deferred,
    /// The observer reads the model in its state after each step.
    PerStep,
    /// The observer is called within the step, for example before the optimizer's step, or changes
    /// the following step. Such a step cannot be a graph. The text names the observer, as in `the
    /// model has a hook there`.
    InStep(&'static str),
}

impl StepAccess {
    /// Returns the access that a step with this loss needs.
    pub fn of_loss(loss: &impl Loss) -> Self {
        loss.outside_graphs().map_or(Self::Deferred, Self::InStep)
    }

    /// Returns the closer of the two accesses. It satisfies both observers.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::InStep(_), _) | (Self::PerStep, Self::Deferred) => self,
            (Self::Deferred, _) | (_, Self::InStep(_)) => other,
            (Self::PerStep, Self::PerStep) => self,
        }
    }
}
