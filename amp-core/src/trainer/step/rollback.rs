//! The state that a skipped or repeated step must not change: buffers, the model's own state, random
//! numbers, and parameters that the forward pass changes. Other parameters, optimizers, schedules and the loss
//! scale change only in applied steps.

use tch::Device;

use super::tensor_copies::Kept;
use crate::{
    LightningModule, Result,
    nn::{Role, changed_in_forward, named_tensors},
    random::RandomState,
    state::State,
};

/// The random generators' states and the model's own state before forward and backward passes that
/// must change neither.
pub(in crate::trainer) struct StateBackup {
    device: Device,
    own: State,
    random: RandomState,
}

impl StateBackup {
    /// Saves the current state.
    pub(in crate::trainer) fn begin(model: &dyn LightningModule, device: Device) -> Result<Self> {
        let mut own = State::default();
        model.on_save_checkpoint(&mut own)?;
        Ok(Self { device, own: own.copied()?, random: RandomState::read(device)? })
    }

    /// Restores the saved state.
    pub(in crate::trainer) fn end(&self, model: &mut dyn LightningModule) -> Result<()> {
        if !self.own.is_empty() {
            model.on_load_checkpoint(&self.own)?;
        }
        self.restore_random()
    }

    /// Restores the random generators.
    pub(super) fn restore_random(&self) -> Result<()> {
        self.random.restore(self.device)
    }
}

/// The state before the running step.
pub(super) struct Rollback {
    device: Device,
    buffers: Kept,
    /// The backup, which exists while a step runs.
    backup: Option<StateBackup>,
}

impl Rollback {
    /// Prepares backups of the buffers of `model`, which is already on its device, and of the
    /// parameters that its forward pass changes.
    pub(super) fn new(model: &dyn LightningModule, device: Device) -> Result<Self> {
        let tensors = named_tensors(model).into_iter();
        let buffers = tensors.filter(|(_, _, role)| *role == Role::Buffer);
        let buffers = buffers.map(|(_, tensor, _)| tensor);
        let changed = changed_in_forward(model).into_iter().map(|parameter| parameter.tensor);
        let buffers = Kept::new(buffers.chain(changed).collect(), 1)?;
        Ok(Self { device, buffers, backup: None })
    }

    /// Saves the current state.
    pub(super) fn keep(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.buffers.keep(0)?;
        self.backup = Some(StateBackup::begin(model, self.device)?);
        Ok(())
    }

    /// Restores the saved state during the step.
    pub(super) fn restore(&self, model: &mut dyn LightningModule) -> Result<()> {
        let Some(backup) = &self.backup else { return Ok(()) };
        self.buffers.restore(0)?;
        backup.end(model)
    }

    /// Ends the step and keeps its changes.
    pub(super) fn end(&mut self) {
        self.backup = None;
    }

    /// Restores the random generators.
    pub(super) fn restore_random(&self) -> Result<()> {
        self.backup.as_ref().map_or(Ok(()), StateBackup::restore_random)
    }

    /// Returns the number of bytes of the kept buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers.bytes()
    }
}
