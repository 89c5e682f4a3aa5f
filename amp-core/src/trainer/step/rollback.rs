//! What a step that is skipped or run again must not change: buffers, the model's own state, random
//! numbers. Parameters, optimizers, schedules and scale change with a step that is applied alone.

use tch::Device;

use super::kept::Kept;
use crate::{
    LightningModule, Result,
    nn::{Role, named_tensors},
    random::RandomState,
    state::State,
};

/// The random numbers and the model's own state before passes that are to leave nothing.
pub(in crate::trainer) struct Aside {
    device: Device,
    own: State,
    random: RandomState,
}

impl Aside {
    /// Keeps the state of now.
    pub(in crate::trainer) fn begin(model: &dyn LightningModule, device: Device) -> Result<Self> {
        let mut own = State::default();
        model.on_save_checkpoint(&mut own)?;
        Ok(Self { device, own: own.copied()?, random: RandomState::read(device)? })
    }

    /// Brings the kept state back.
    pub(in crate::trainer) fn end(&self, model: &mut dyn LightningModule) -> Result<()> {
        if !self.own.is_empty() {
            model.on_load_checkpoint(&self.own)?;
        }
        self.restore_random()
    }

    /// Lets random numbers be drawn once more.
    pub(super) fn restore_random(&self) -> Result<()> {
        self.random.restore(self.device)
    }
}

/// The state before the step that is running.
pub(super) struct Rollback {
    device: Device,
    buffers: Kept,
    /// While a step runs.
    aside: Option<Aside>,
}

impl Rollback {
    /// For the buffers of `model`, which is at its place.
    pub(super) fn new(model: &dyn LightningModule, device: Device) -> Result<Self> {
        let tensors = named_tensors(model).into_iter();
        let buffers = tensors.filter(|(_, _, role)| *role == Role::Buffer);
        let buffers = Kept::new(buffers.map(|(_, tensor, _)| tensor).collect(), 1)?;
        Ok(Self { device, buffers, aside: None })
    }

    /// Keeps the state of now.
    pub(super) fn keep(&mut self, model: &dyn LightningModule) -> Result<()> {
        self.buffers.keep(0)?;
        self.aside = Some(Aside::begin(model, self.device)?);
        Ok(())
    }

    /// Brings the kept state back, while the step runs.
    pub(super) fn restore(&self, model: &mut dyn LightningModule) -> Result<()> {
        let Some(aside) = &self.aside else { return Ok(()) };
        self.buffers.restore(0)?;
        aside.end(model)
    }

    /// Ends the step: what it has changed stays.
    pub(super) fn end(&mut self) {
        self.aside = None;
    }

    /// Lets random numbers be drawn once more.
    pub(super) fn restore_random(&self) -> Result<()> {
        self.aside.as_ref().map_or(Ok(()), Aside::restore_random)
    }

    /// Bytes of the kept buffers.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers.bytes()
    }
}
