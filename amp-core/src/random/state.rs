//! The state of the random generators that a run uses.

use tch::{Device, Kind, Tensor};

use crate::{
    Result,
    ffi::{self, CpuRandom},
    state::State,
};

/// The states of the CPU's generator and of the generator of the run's device.
///
/// ```no_run,standalone_crate
/// use amp_core::{random::RandomState, tch::{Device, Kind, Tensor}};
///
/// # fn main() -> amp_core::Result<()> {
/// let before = RandomState::read(Device::Cpu)?;
/// let first = Tensor::rand([3], (Kind::Float, Device::Cpu));
/// before.restore(Device::Cpu)?;
/// assert_eq!(first, Tensor::rand([3], (Kind::Float, Device::Cpu)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RandomState {
    cpu: CpuRandom,
    cuda: Option<Tensor>,
}

impl RandomState {
    /// Reads the current state of the generators. Does not wait for the device, because the state
    /// of a CUDA generator is on the host.
    ///
    /// # Errors
    /// When libtorch does not have this device.
    pub fn read(device: Device) -> Result<Self> {
        let cuda = device.is_cuda().then(|| ffi::random_state(device)).transpose()?;
        Ok(Self { cpu: CpuRandom::read()?, cuda })
    }

    /// Writes this state back to the generators. `device` must be the device from which the state
    /// was read.
    ///
    /// # Errors
    /// When libtorch does not have this device.
    pub fn restore(&self, device: Device) -> Result<()> {
        self.cpu.restore()?;
        match &self.cuda {
            Some(cuda) => ffi::set_random_state(device, cuda),
            None => Ok(()),
        }
    }

    /// Returns the seed of a CUDA device's generator, and the offset of its next random number in
    /// the sequence of this seed. Returns `None` for other devices.
    pub(super) fn seed_and_offset(device: Device) -> Result<Option<(i64, i64)>> {
        if !device.is_cuda() {
            return Ok(None);
        }
        // The state consists of the two numbers, each in eight bytes.
        let numbers = ffi::random_state(device)?.f_view_dtype(Kind::Int64)?;
        Ok(Some((numbers.f_int64_value(&[0])?, numbers.f_int64_value(&[1])?)))
    }

    /// Returns whether this state equals `other`. If the states are equal, no random number was
    /// drawn between the two readings.
    ///
    /// # Errors
    /// When libtorch cannot compare the states.
    pub fn is_same(&self, other: &Self) -> Result<bool> {
        let cuda = match (&self.cuda, &other.cuda) {
            (Some(own), Some(other)) => own.f_equal(other)?,
            (own, other) => own.is_none() && other.is_none(),
        };
        Ok(cuda && self.cpu.tensor()?.f_equal(&other.cpu.tensor()?)?)
    }

    pub(crate) fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put_tensor("cpu", &self.cpu.tensor()?);
        if let Some(cuda) = &self.cuda {
            state.put_tensor("cuda", cuda);
        }
        Ok(state)
    }

    /// Converts a saved state. If no state of the CUDA generator was saved, the result contains its
    /// current state.
    pub(crate) fn from_state(state: &State, device: Device) -> Result<Self> {
        let now = Self::read(device)?;
        let cpu = CpuRandom::from_tensor(state.tensor_like("cpu", &now.cpu.tensor()?)?)?;
        let cuda = match (now.cuda, state.tensor("cuda")) {
            (Some(now), Ok(_)) => Some(state.tensor_like("cuda", &now)?.shallow_clone()),
            (now, _) => now,
        };
        Ok(Self { cpu, cuda })
    }
}
