//! The random numbers of validation, test and prediction.

use tch::Device;

use super::{Place, RandomState, place};
use crate::{
    Result,
    ffi::{self, CpuRandom},
};

/// The seed of the random numbers in every evaluation.
const SEED: u64 = 0x6576_616c_7561_7465;

/// A guard for an evaluation. Creating it seeds the generators of the CPU and of the run's device.
/// The seed is always the same, so that every evaluation draws the same random numbers. Dropping
/// the guard restores the states that the generators had before.
pub(crate) struct EvaluationDraws {
    device: Device,
    before: RandomState,
    _place: Place,
}

impl EvaluationDraws {
    /// Seeds the generators for an evaluation on this device.
    ///
    /// # Errors
    /// When libtorch does not have this device.
    pub(crate) fn begin(device: Device) -> Result<Self> {
        let _place = place();
        let before = RandomState::read(device)?;
        CpuRandom::seed(SEED)?;
        if device.is_cuda() {
            ffi::seed_random(device, SEED)?;
        }
        Ok(Self { device, before, _place })
    }
}

impl Drop for EvaluationDraws {
    fn drop(&mut self) {
        // Restoring a state that was read from the same generators does not fail, so the result is
        // ignored.
        let _ = self.before.restore(self.device);
    }
}
