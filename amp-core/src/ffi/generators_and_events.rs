//! Random generators, and events that measure times on the device
//! (`csrc/generators_and_events.cpp`).

use std::ffi::{c_double, c_int, c_void};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::{Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_random_get(cuda: c_int, out: *mut *mut C_tensor) -> c_int;
    fn amp_random_set(cuda: c_int, state: Handle) -> c_int;
    fn amp_random_seed_all(seed: u64) -> c_int;
    fn amp_random_seed(cuda: c_int, seed: u64) -> c_int;
    fn amp_cpu_random_read(out: *mut *mut c_void) -> c_int;
    fn amp_cpu_random_write(random: *const c_void) -> c_int;
    fn amp_cpu_random_seed(seed: u64) -> c_int;
    fn amp_cpu_random_tensor(random: *const c_void, out: *mut *mut C_tensor) -> c_int;
    fn amp_cpu_random_of(state: Handle, out: *mut *mut c_void) -> c_int;
    fn amp_cpu_random_drop(random: *mut c_void);
    fn amp_event_record(cuda: c_int, out: *mut *mut c_void) -> c_int;
    fn amp_event_elapsed(
        from: *const c_void,
        to: *const c_void,
        milliseconds: *mut c_double,
    ) -> c_int;
    fn amp_event_synchronize(event: *const c_void) -> c_int;
    fn amp_event_drop(event: *mut c_void);
}

/// Returns the index by which the C++ code identifies a device. The CPU has the index -1.
fn index(device: Device) -> c_int {
    match device {
        Device::Cuda(index) => index as c_int,
        _ => -1,
    }
}

/// A saved state of the CPU's default random generator.
#[derive(Debug)]
pub(crate) struct CpuRandom {
    random: *mut c_void,
}

impl CpuRandom {
    /// Reads the current state of the generator.
    pub(crate) fn read() -> Result<Self> {
        let mut random = std::ptr::null_mut();
        checked!(amp_cpu_random_read(&mut random))?;
        Ok(Self { random })
    }

    /// Writes this state back to the generator.
    pub(crate) fn restore(&self) -> Result<()> {
        checked!(amp_cpu_random_write(self.random))
    }

    /// Seeds the CPU's default generator, and no generator of another device.
    pub(crate) fn seed(seed: u64) -> Result<()> {
        checked!(amp_cpu_random_seed(seed))
    }

    /// Returns the state as a byte tensor in the format of `torch.get_rng_state`.
    pub(crate) fn tensor(&self) -> Result<Tensor> {
        let mut state = std::ptr::null_mut();
        checked!(amp_cpu_random_tensor(self.random, &mut state))?;
        // SAFETY: on success `state` is a new tensor without another owner.
        Ok(unsafe { Tensor::from_ptr(state) })
    }

    /// Reads a state from a tensor in the format of `torch.get_rng_state`.
    pub(crate) fn from_tensor(state: &Tensor) -> Result<Self> {
        let mut random = std::ptr::null_mut();
        checked!(amp_cpu_random_of(state.as_ptr(), &mut random))?;
        Ok(Self { random })
    }
}

impl Drop for CpuRandom {
    fn drop(&mut self) {
        // SAFETY: the shim made the state, which is dropped once.
        unsafe { amp_cpu_random_drop(self.random) };
    }
}

/// Returns the state of a CUDA device's default generator, a byte tensor on the CPU.
pub(crate) fn random_state(device: Device) -> Result<Tensor> {
    let mut state = std::ptr::null_mut();
    checked!(amp_random_get(index(device), &mut state))?;
    // SAFETY: on success `state` is a new tensor without another owner.
    Ok(unsafe { Tensor::from_ptr(state) })
}

pub(crate) fn set_random_state(device: Device, state: &Tensor) -> Result<()> {
    checked!(amp_random_set(index(device), state.as_ptr()))
}

/// Seeds the default generators of all devices, as torch.manual_seed does. Fails while a CUDA graph
/// is captured. `tch::manual_seed` would then end the process: it lets libtorch's exception pass
/// through Rust.
pub(crate) fn seed_all_random(seed: u64) -> Result<()> {
    checked!(amp_random_seed_all(seed))
}

/// Seeds a CUDA device's default generator.
pub(crate) fn seed_random(device: Device, seed: u64) -> Result<()> {
    checked!(amp_random_seed(index(device), seed))
}

/// A point in the sequence of operations of a CUDA device's current stream.
pub(crate) struct CudaEvent {
    event: *mut c_void,
}

impl CudaEvent {
    pub(crate) fn record(device: Device) -> Result<Self> {
        let mut event = std::ptr::null_mut();
        checked!(amp_event_record(index(device), &mut event))?;
        Ok(Self { event })
    }

    /// Creates an event from a handle that the C++ code returned, and takes ownership of the
    /// handle.
    pub(super) fn from_handle(event: *mut c_void) -> Self {
        Self { event }
    }

    pub(super) fn handle(&self) -> *const c_void {
        self.event
    }

    /// Waits until the device has reached this point.
    pub(crate) fn wait(&self) -> Result<()> {
        checked!(amp_event_synchronize(self.event))
    }

    /// Returns the time in seconds from this point to a later point. Waits until the device has
    /// reached the later point.
    pub(crate) fn seconds_to(&self, later: &Self) -> Result<f64> {
        let mut milliseconds = 0.0;
        checked!(amp_event_elapsed(self.event, later.event, &mut milliseconds))?;
        Ok(milliseconds / 1e3)
    }
}

// SAFETY: the event belongs to the device; any thread may wait for it and free it.
unsafe impl Send for CudaEvent {}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        // SAFETY: the shim made the event, which is dropped once.
        unsafe { amp_event_drop(self.event) };
    }
}
