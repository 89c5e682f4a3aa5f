//! A copy of a run's state, which recovery restores after steps that were not finite.

use tch::Tensor;

use super::optimization::Optimization;
use crate::{
    LightningModule, Result,
    memory::{copy_of, tensor_bytes},
    nn::named_tensors,
    state::State,
    trainer::config::{NonFinite, TrainerConfig},
};

/// A copy of a run's state after an applied step: weights, buffers, optimizers and schedules.
pub(super) struct LastGood {
    applied: u64,
    tensors: Vec<Tensor>,
    optimizers: Vec<State>,
    /// Whether this copy was restored before.
    used: bool,
}

impl LastGood {
    /// Returns whether the state is copied after `applied` applied steps. `exists` says whether
    /// there is an earlier copy.
    pub(super) fn is_due(config: &TrainerConfig, exists: bool, applied: u64) -> bool {
        config.recovery.on_non_finite == NonFinite::RestoreLastGood
            && (!exists || applied.is_multiple_of(config.recovery.keep_good_every_n_steps))
    }

    /// Copies the current state of the run.
    pub(super) fn keep(
        model: &dyn LightningModule,
        optim: &Optimization<'_>,
        applied: u64,
    ) -> Result<Self> {
        let tensors = named_tensors(model).into_iter();
        let tensors = tensors.map(|(_, tensor, _)| copy_of(&tensor));
        let optimizers = optim.scheduled.iter().map(|scheduled| scheduled.state()?.copied());
        Ok(Self {
            applied,
            tensors: tensors.collect::<Result<_>>()?,
            optimizers: optimizers.collect::<Result<_>>()?,
            used: false,
        })
    }

    /// Returns whether it makes sense to restore this copy in a run with `applied` applied steps.
    /// Restoring it a second time makes sense only if a step was applied since.
    pub(super) fn helps(&self, applied: u64) -> bool {
        !self.used || applied > self.applied
    }

    /// Restores the copy, and returns the number of steps that were applied before it was made.
    pub(super) fn restore(
        &mut self,
        model: &dyn LightningModule,
        optim: &mut Optimization<'_>,
    ) -> Result<u64> {
        self.used = true;
        for ((_, mut tensor, _), kept) in named_tensors(model).into_iter().zip(&self.tensors) {
            tch::no_grad(|| tensor.f_copy_(kept))?;
        }
        for (scheduled, state) in optim.scheduled.iter_mut().zip(&self.optimizers) {
            scheduled.load_state(state)?;
        }
        Ok(self.applied)
    }

    /// Returns the number of bytes of the tensors in this copy.
    pub(super) fn bytes(&self) -> u64 {
        let states = self.optimizers.iter().flat_map(State::tensors).map(|(_, tensor)| tensor);
        self.tensors.iter().chain(states).map(tensor_bytes).sum()
    }
}
