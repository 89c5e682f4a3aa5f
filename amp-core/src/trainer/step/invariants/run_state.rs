//! The state of a run that the checks of invariants can read.

use std::{cell::OnceCell, rc::Rc};

use tch::Tensor;

use super::{super::state::StepState, sampled_tensors::Samples};
use crate::{
    LightningModule, Result,
    nn::{self, Role},
    optim::Scheduled,
};

/// The state of a run at one moment.
pub(super) struct RunView<'a> {
    pub(super) model: &'a dyn LightningModule,
    pub(super) state: &'a StepState<'a>,
    /// The number of steps that were started and have not ended.
    pub(super) running: u64,
    tensors: OnceCell<Vec<(String, Tensor, Role)>>,
    samples: OnceCell<Rc<Samples>>,
}

impl<'a> RunView<'a> {
    pub(super) fn new(
        model: &'a dyn LightningModule,
        state: &'a StepState<'a>,
        running: u64,
    ) -> Self {
        let (tensors, samples) = (OnceCell::new(), OnceCell::new());
        Self { model, state, running, tensors, samples }
    }

    /// Returns the model's parameters and buffers, with their names and roles.
    pub(super) fn tensors(&self) -> &[(String, Tensor, Role)] {
        self.tensors.get_or_init(|| nn::named_tensors(self.model))
    }

    /// Returns a few elements of each parameter and buffer, on the host.
    ///
    /// # Errors
    /// When the device reports an earlier failure.
    pub(super) fn samples(&self) -> Result<Rc<Samples>> {
        if let Some(samples) = self.samples.get() {
            return Ok(Rc::clone(samples));
        }
        let samples = Rc::new(Samples::of(self.tensors())?);
        Ok(Rc::clone(self.samples.get_or_init(|| samples)))
    }

    pub(super) fn scheduled(&self) -> &[Scheduled] {
        &self.state.optim.scheduled
    }
}
