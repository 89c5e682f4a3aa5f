//! Saves and restores what a skipped or repeated step must not change: buffers, what the model
//! saves in `on_save_checkpoint`, the states of the random generators, and parameters that the
//! forward pass itself changes. Other parameters, optimizers and schedules need no copy, because
//! only applied steps change them. The loss scale needs none either: after an overflow it must stay
//! lower.

use tch::{Device, Tensor};

use super::tensor_copies::Kept;
use crate::{
    LightningModule, Result,
    nn::{Role, changed_in_forward, named_tensors},
    random::RandomState,
    state::State,
};

/// A copy of the random generators' states and of what the model saves in `on_save_checkpoint`,
/// made before forward and backward passes that must not change them.
pub(in crate::trainer) struct StateBackup {
    device: Device,
    own: State,
    random: RandomState,
}

impl StateBackup {
    /// Copies what the model saves in `on_save_checkpoint`, and the states of the random
    /// generators.
    pub(in crate::trainer) fn begin(model: &dyn LightningModule, device: Device) -> Result<Self> {
        let mut own = State::default();
        model.on_save_checkpoint(&mut own)?;
        Ok(Self { device, own: own.copied()?, random: RandomState::read(device)? })
    }

    /// Restores the copied state of the model and of the random generators.
    pub(in crate::trainer) fn end(&self, model: &mut dyn LightningModule) -> Result<()> {
        if !self.own.is_empty() {
            model.on_load_checkpoint(&self.own)?;
        }
        self.restore_random()
    }

    /// Restores the state of the random generators.
    pub(super) fn restore_random(&self) -> Result<()> {
        self.random.restore(self.device)
    }
}

/// The state before the running step, which is restored if the step is skipped or repeated.
pub(super) struct Rollback {
    device: Device,
    buffers: Kept,
    /// The copy of the random generators' states and of the model's own state. `None` while no step
    /// is running.
    backup: Option<StateBackup>,
}

impl Rollback {
    /// Allocates memory for copies of the buffers of `model`, and of the parameters that its
    /// forward pass changes. The model must already be on its device.
    pub(super) fn new(model: &dyn LightningModule, device: Device) -> Result<Self> {
        let tensors = named_tensors(model).into_iter();
        let buffers = tensors.filter(|(_, _, role)| *role == Role::Buffer);
        let buffers = buffers.map(|(_, tensor, _)| tensor);
        let changed = changed_in_forward(model).into_iter().map(|parameter| parameter.tensor);
        let buffers = Kept::new(buffers.chain(changed).collect(), 1)?;
        Ok(Self { device, buffers, backup: None })
    }

    /// Returns the tensors that are restored: buffers, and the parameters that the forward pass
    /// changes.
    pub(super) fn buffers(&self) -> impl Iterator<Item = &Tensor> {
        self.buffers.live()
    }

    /// Saves the current state, before a step.
    pub(super) fn keep(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.buffers.keep(0)?;
        self.backup = Some(StateBackup::begin(model, self.device)?);
        Ok(())
    }

    /// Restores the saved state, if a step is running.
    pub(super) fn restore(&self, model: &mut dyn LightningModule) -> Result<()> {
        let Some(backup) = &self.backup else { return Ok(()) };
        self.buffers.restore(0)?;
        backup.end(model)
    }

    /// Ends the step and keeps its changes.
    pub(super) fn end(&mut self) {
        self.backup = None;
    }

    /// Restores the state that the random generators had before the step.
    pub(super) fn restore_random(&self) -> Result<()> {
        self.backup.as_ref().map_or(Ok(()), StateBackup::restore_random)
    }

    /// Returns the number of bytes of the copies of the buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers.bytes()
    }
}
