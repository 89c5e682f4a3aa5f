//! The interface of the executors. One executor runs steps operator by operator, another as CUDA
//! graphs.

use super::{micro_batches::Examples, observers::Observers, state::StepState};
use crate::{LightningModule, Result, callback::Action, log::Log};

/// Runs optimizer steps. A step starts on its examples, and ends later, when its outcome is known
/// (applied, skipped or failed). Steps end in the order in which they started.
pub(in crate::trainer) trait Executor {
    /// Returns whether the executor can start a step on these examples now.
    ///
    /// # Errors
    /// When the configuration requires this executor, but the step cannot run on it.
    fn accepts(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: &Examples,
    ) -> Result<bool>;

    /// Starts a step.
    fn start(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: Examples,
    ) -> Result<()>;

    /// Returns the number of steps in flight. A step is in flight if it was started and its outcome
    /// is unknown.
    fn running(&self) -> u64;

    /// Returns whether the oldest step must [end](Self::end) before another can start.
    fn is_full(&self, state: &StepState<'_>) -> bool;

    /// Ends the oldest step in flight; `None` if there is none.
    fn end(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
    ) -> Result<Option<Ended>>;

    /// Moves the executor's sums of logged values back to the log, before other code uses the log.
    fn release(&mut self, log: &mut Log) -> Result<()>;
}

/// How a step has ended.
pub(in crate::trainer) enum Ended {
    /// It was applied or skipped, and its batches are reported.
    Over {
        /// The batch of the epoch that follows the step.
        next_batch: i64,
        /// The actions that callbacks request.
        actions: Vec<Action>,
    },
    /// The device skipped the step and the steps started after it. Nothing has changed, and their
    /// examples must be used again.
    Void(Vec<Examples>),
}
