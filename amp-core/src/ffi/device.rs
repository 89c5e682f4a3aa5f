//! Memory statistics, the switches for TF32 and deterministic algorithms, and properties of devices
//! (`csrc/device.cpp`).

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;

use super::{between_captures, take_error};
use crate::Result;

#[repr(C)]
struct AmpCudaDevice {
    name: [c_char; 256],
    major: c_int,
    minor: c_int,
    multiprocessors: c_int,
    driver: c_int,
    memory: usize,
}

unsafe extern "C" {
    fn amp_host_memory_start(out: *mut *mut c_void) -> c_int;
    fn amp_host_memory_read(guard: *const c_void, live: *mut i64, peak: *mut i64);
    fn amp_host_memory_stop(guard: *mut c_void) -> c_int;
    fn amp_cuda_memory(
        index: c_int,
        allocated: *mut i64,
        peak: *mut i64,
        reserved_peak: *mut i64,
    ) -> c_int;
    fn amp_cuda_memory_settle(index: c_int) -> c_int;
    fn amp_cuda_memory_reset_peak(index: c_int) -> c_int;
    fn amp_cuda_empty_cache() -> c_int;
    fn amp_set_numerics(tf32: c_int, deterministic: c_int) -> c_int;
    fn amp_get_numerics(tf32: *mut c_int, deterministic: *mut c_int) -> c_int;
    fn amp_cpu_capability(out: *mut c_char, capacity: usize) -> c_int;
    fn amp_cpu_multiplies_f16(out: *mut c_int) -> c_int;
    fn amp_cuda_device(index: c_int, out: *mut AmpCudaDevice) -> c_int;
}

/// A guard that counts the bytes of CPU tensors that this thread allocates.
pub(crate) struct HostMemory {
    guard: *mut c_void,
    /// The guard belongs to the thread that started it. This field keeps the guard from being sent
    /// to another thread.
    _not_send: PhantomData<*const ()>,
}

impl HostMemory {
    pub(crate) fn start() -> Result<Self> {
        let mut guard = std::ptr::null_mut();
        checked!(amp_host_memory_start(&mut guard))?;
        Ok(Self { guard, _not_send: PhantomData })
    }

    /// Returns the current number of bytes and the peak, since the guard was started.
    pub(crate) fn read(&self) -> (i64, i64) {
        let (mut live, mut peak) = (0, 0);
        // SAFETY: the guard lives as long as self.
        unsafe { amp_host_memory_read(self.guard, &mut live, &mut peak) };
        (live, peak)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // If this call fails, a counter remains that nobody reads. The error is ignored, because
        // `drop` cannot return it.
        let _ = checked!(amp_host_memory_stop(self.guard));
    }
}

/// Returns three numbers of bytes: what the existing tensors have requested from the caching
/// allocator, the peak of this number, and the peak of the memory that the allocator has reserved
/// on the device.
pub(crate) fn cuda_memory(index: usize) -> Result<(i64, i64, i64)> {
    let (mut requested, mut peak, mut reserved) = (0, 0, 0);
    checked!(amp_cuda_memory(index as c_int, &mut requested, &mut peak, &mut reserved))?;
    Ok((requested, peak, reserved))
}

/// Waits for the device, because until then [`cuda_memory`] still counts freed tensors that a
/// second stream has used.
pub(crate) fn cuda_memory_settle(index: usize) -> Result<()> {
    let _between = between_captures();
    checked!(amp_cuda_memory_settle(index as c_int))
}

pub(crate) fn cuda_memory_reset_peak(index: usize) -> Result<()> {
    checked!(amp_cuda_memory_reset_peak(index as c_int))
}

/// Frees the memory that the caching allocator keeps for later tensors.
pub(crate) fn cuda_empty_cache() -> Result<()> {
    let _between = between_captures();
    checked!(amp_cuda_empty_cache())
}

pub(crate) fn set_numerics(tf32: bool, deterministic: bool) -> Result<()> {
    checked!(amp_set_numerics(c_int::from(tf32), c_int::from(deterministic)))
}

/// Returns whether TF32 is on, and whether deterministic algorithms are requested.
pub(crate) fn numerics() -> Result<(bool, bool)> {
    let (mut tf32, mut deterministic) = (0, 0);
    checked!(amp_get_numerics(&mut tf32, &mut deterministic))?;
    Ok((tf32 != 0, deterministic != 0))
}

/// Returns the instruction set for which ATen chose its CPU kernels, such as `AVX2`.
pub(crate) fn cpu_capability() -> Result<String> {
    let mut name = [0; 32];
    checked!(amp_cpu_capability(name.as_mut_ptr(), name.len()))?;
    Ok(text(&name))
}

/// Returns whether oneDNN multiplies f16 numbers with instructions of this CPU
/// (`csrc/cpu_products.cpp`): the CPU must have such instructions, and the environment variable
/// `ONEDNN_MAX_CPU_ISA` must not exclude them.
pub(crate) fn cpu_multiplies_f16() -> Result<bool> {
    let mut multiplies = 0;
    checked!(amp_cpu_multiplies_f16(&mut multiplies))?;
    Ok(multiplies != 0)
}

fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) struct CudaDevice {
    pub(crate) name: String,
    pub(crate) capability: (i32, i32),
    pub(crate) multiprocessors: i32,
    pub(crate) driver: i32,
    pub(crate) memory: u64,
}

pub(crate) fn cuda_device(index: usize) -> Result<CudaDevice> {
    let mut out = AmpCudaDevice {
        name: [0; 256],
        major: 0,
        minor: 0,
        multiprocessors: 0,
        driver: 0,
        memory: 0,
    };
    checked!(amp_cuda_device(index as c_int, &mut out))?;
    Ok(CudaDevice {
        name: text(&out.name),
        capability: (out.major, out.minor),
        multiprocessors: out.multiprocessors,
        driver: out.driver,
        memory: out.memory as u64,
    })
}
