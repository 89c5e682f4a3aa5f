//! The interface of the two executors: one runs steps as CUDA graphs, the other runs them without.

use super::{micro_batches::Examples, observers::Observers, state::StepState};
use crate::{LightningModule, Result, callback::Action, log::Log};

/// Runs optimizer steps. A step ends when the host knows whether it was applied, was skipped or has
/// failed. This may be long after the step was started. Steps end in the order in which they
/// started.
pub(in crate::trainer) trait Executor {
    /// Returns whether this executor can start a step on these examples now.
    ///
    /// # Errors
    /// When the configuration requires this executor, but it cannot run the step.
    fn accepts(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: &Examples,
    ) -> Result<bool>;

    /// Starts a step on these examples.
    fn start(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: Examples,
    ) -> Result<()>;

    /// Returns the number of steps in flight: steps that were started and whose outcome is not
    /// known yet.
    fn running(&self) -> u64;

    /// Returns whether the oldest step must [end](Self::end) before a further step can start.
    fn is_full(&self, state: &StepState<'_>) -> bool;

    /// Ends the oldest step in flight. Returns `None` if no step is in flight.
    fn end(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
    ) -> Result<Option<Ended>>;

    /// Copies the sums of logged values from the executor to the log, so that other code can use
    /// the log.
    fn release(&mut self, log: &mut Log) -> Result<()>;
}

/// The outcome of a step that has ended.
pub(in crate::trainer) enum Ended {
    /// The step was applied or skipped, and its batches were reported.
    Over {
        /// The index, within the epoch, of the first batch after the step.
        next_batch: i64,
        /// The actions that callbacks request after the step.
        actions: Vec<Action>,
    },
    /// A value in this step was not finite, so the device skipped this step and all steps that were
    /// started after it. No state has changed. The steps must be repeated on these examples. The
    /// first of them must run without a CUDA graph.
    Void(Vec<Examples>),
}
