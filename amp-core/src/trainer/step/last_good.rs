//! A copy of a run's state, which the trainer restores after a step that was not finite, if the
//! recovery policy is `NonFinite::RestoreLastGood`.

use super::{optimization::Optimization, state::StepState, weight_average::Average};
use crate::{
    LightningModule, Result,
    memory::tensor_bytes,
    nn::named_tensors,
    state::State,
    trainer::config::{NonFinite, TrainerConfig},
};

/// A copy of a run's state at the start or after an applied step: weights, buffers, optimizers,
/// schedules, and the averages of the weights.
pub(super) struct LastGood {
    applied: u64,
    /// The copied state. The names of all its tensors and values begin with [`COPY`].
    copy: State,
    /// Whether this copy was restored before.
    used: bool,
}

const COPY: &str = "copy";
const TENSORS: &str = "tensors";
const AVERAGE: &str = "average";

fn optimizer(index: usize) -> String {
    format!("optimizer/{index}")
}

impl LastGood {
    /// Returns whether the state must be copied after `applied` applied steps. `exists` says
    /// whether there is an earlier copy.
    fn is_due(config: &TrainerConfig, exists: bool, applied: u64) -> bool {
        config.recovery.on_non_finite == NonFinite::RestoreLastGood
            && (!exists || applied.is_multiple_of(config.recovery.keep_good_every_n_steps))
    }

    /// Copies the current state of the run.
    fn keep(
        model: &dyn LightningModule,
        optim: &Optimization<'_>,
        average: Option<&Average>,
        applied: u64,
    ) -> Result<Self> {
        let (mut tensors, mut all) = (State::default(), State::default());
        for (name, tensor, _) in named_tensors(model) {
            tensors.put_tensor(name, &tensor);
        }
        all.put_part(TENSORS, tensors);
        for (index, scheduled) in optim.scheduled.iter().enumerate() {
            all.put_part(&optimizer(index), scheduled.state()?);
        }
        if let Some(average) = average {
            all.put_part(AVERAGE, average.averages()?);
        }
        let mut copy = State::default();
        copy.put_part(COPY, all.copied()?);
        Ok(Self { applied, copy, used: false })
    }

    /// Returns whether restoring this copy can help after `applied` applied steps. A copy that was
    /// restored before can help again only if a step has been applied since then; otherwise the
    /// same steps would fail again.
    pub(super) fn helps(&self, applied: u64) -> bool {
        !self.used || applied > self.applied
    }

    /// Restores the copy, and returns the number of steps that were applied before the copy was
    /// made.
    pub(super) fn restore(
        &mut self,
        model: &dyn LightningModule,
        optim: &mut Optimization<'_>,
        average: Option<&mut Average>,
    ) -> Result<u64> {
        self.used = true;
        let copy = self.copy.part(COPY);
        let kept = copy.part(TENSORS);
        for (name, mut tensor, _) in named_tensors(model) {
            let kept = kept.tensor_like(&name, &tensor)?;
            tch::no_grad(|| tensor.f_copy_(kept))?;
        }
        for (index, scheduled) in optim.scheduled.iter_mut().enumerate() {
            scheduled.go_back(&copy.part(&optimizer(index)))?;
        }
        if let Some(average) = average {
            average.load_averages(&copy.part(AVERAGE))?;
        }
        Ok(self.applied)
    }

    /// Returns the number of bytes of the tensors in this copy.
    pub(super) fn bytes(&self) -> u64 {
        self.copy.tensors().map(|(_, tensor)| tensor_bytes(tensor)).sum()
    }
}

impl StepState<'_> {
    /// Copies the current state for a later recovery if a copy is due and the run's options need
    /// copies.
    pub(super) fn keep_good(&mut self, model: &dyn LightningModule) -> Result<()> {
        let applied = self.counts.applied;
        if LastGood::is_due(self.config, self.good.is_some(), applied) {
            let average = self.average.as_ref();
            self.good = Some(LastGood::keep(model, &self.optim, average, applied)?);
        }
        Ok(())
    }

    /// Copies the state at the start of a run, if the run needs copies. A resumed run keeps the
    /// copy of its checkpoint.
    pub(in crate::trainer) fn keep_first_good(
        &mut self,
        model: &dyn LightningModule,
    ) -> Result<()> {
        match self.good {
            Some(_) => Ok(()),
            None => self.keep_good(model),
        }
    }

    /// Returns the last copy of the state, for a checkpoint. Returns `None` if there is no copy.
    pub(in crate::trainer) fn good_state(&self) -> Result<Option<State>> {
        let Some(LastGood { applied, copy, used }) = &self.good else { return Ok(None) };
        let mut state = State::default();
        state.put("applied", applied)?;
        state.put("used", used)?;
        state.put_part(COPY, copy.part(COPY));
        Ok(Some(state))
    }

    /// Loads the last copy of the state from a checkpoint, if the run needs copies. `state` is
    /// empty if the checkpoint contains no copy.
    ///
    /// # Errors
    /// When the copy does not belong to this run.
    pub(in crate::trainer) fn load_good(&mut self, state: &State) -> Result<()> {
        if state.is_empty() || self.config.recovery.on_non_finite != NonFinite::RestoreLastGood {
            return Ok(());
        }
        let (applied, used) = (state.get("applied")?, state.get("used")?);
        let mut copy = State::default();
        copy.put_part(COPY, state.part(COPY));
        self.good = Some(LastGood { applied, copy, used });
        Ok(())
    }
}
