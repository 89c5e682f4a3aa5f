//! Executes steps without CUDA graphs. Such a step has ended when the call that starts it returns.

use super::{
    executor::{Ended, Executor},
    micro_batches::Examples,
    observers::Observers,
    state::StepState,
};
use crate::{LightningModule, Result, callback::Action, log::Log};

/// Runs a training step on some examples and returns the actions that callbacks request.
pub(super) type RunStep = fn(
    &mut StepState<'_>,
    &mut dyn LightningModule,
    &mut Observers<'_, '_>,
    &Examples,
) -> Result<Vec<Action>>;

/// An executor that runs each step to its end within the call that starts the step.
pub(super) struct Direct {
    run: RunStep,
    ended: Option<Ended>,
}

impl Direct {
    pub(super) fn new(run: RunStep) -> Self {
        Self { run, ended: None }
    }
}

impl Executor for Direct {
    fn accepts(
        &mut self,
        _: &mut StepState<'_>,
        _: &mut dyn LightningModule,
        _: &mut Observers<'_, '_>,
        _: &Examples,
    ) -> Result<bool> {
        Ok(self.ended.is_none())
    }

    fn start(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: Examples,
    ) -> Result<()> {
        let actions = (self.run)(state, model, observers, &examples)?;
        self.ended = Some(Ended::Over { next_batch: examples.next_batch(), actions });
        state.eager += 1;
        Ok(())
    }

    fn running(&self) -> u64 {
        0
    }

    fn is_full(&self, _: &StepState<'_>) -> bool {
        self.ended.is_some()
    }

    fn end(
        &mut self,
        _: &mut StepState<'_>,
        _: &mut dyn LightningModule,
        _: &mut Observers<'_, '_>,
    ) -> Result<Option<Ended>> {
        Ok(self.ended.take())
    }

    fn release(&mut self, _: &mut Log) -> Result<()> {
        Ok(())
    }
}
