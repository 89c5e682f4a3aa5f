//! Copies tensors to and from a device, and passes a thread's debug info on to loader threads
//! (`csrc/transfer.cpp`).

use std::ffi::{c_int, c_void};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{CudaEvent, Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_cuda_free_memory(index: c_int, bytes: *mut usize) -> c_int;
    fn amp_pinned(host: Handle, out: *mut *mut C_tensor) -> c_int;
    fn amp_side_stream(index: c_int, id: *mut i64) -> c_int;
    fn amp_copy_start(
        index: c_int,
        stream: i64,
        host: *const Handle,
        count: usize,
        out: *mut *mut C_tensor,
        event: *mut *mut c_void,
    ) -> c_int;
    fn amp_copy_arrive(event: *mut c_void, tensors: *const Handle, count: usize) -> c_int;
    fn amp_copies_to_host(
        index: c_int,
        stream: i64,
        ready: *const c_void,
        tensors: *const Handle,
        count: usize,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_copy_drop(event: *mut c_void);
    fn amp_debug_info_current(out: *mut *mut c_void) -> c_int;
    fn amp_debug_info_enter(info: *const c_void) -> c_int;
    fn amp_debug_info_drop(info: *mut c_void);
}

/// Returns the number of free bytes of a device, according to the driver.
pub(crate) fn cuda_free_memory(index: usize) -> Result<u64> {
    let mut bytes = 0;
    checked!(amp_cuda_free_memory(index as c_int, &mut bytes))?;
    Ok(bytes as u64)
}

/// Copies a tensor to pinned memory, which a CUDA device can read and write while the host
/// continues.
pub(crate) fn pinned(host: &Tensor) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    checked!(amp_pinned(host.as_ptr(), &mut out))?;
    // SAFETY: on success `out` is a new tensor without another owner.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// A second stream of a CUDA device, for copies that run at the same time as computations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SideStream {
    index: c_int,
    id: i64,
}

impl SideStream {
    pub(crate) fn new(index: usize) -> Result<Self> {
        let (index, mut id) = (index as c_int, 0);
        checked!(amp_side_stream(index, &mut id))?;
        Ok(Self { index, id })
    }

    /// Starts copying tensors from the host to the device through pinned memory.
    pub(crate) fn copy<'t>(
        self,
        tensors: impl IntoIterator<Item = &'t Tensor>,
    ) -> Result<DeviceCopy> {
        let tensors: Vec<Handle> = tensors.into_iter().map(|tensor| tensor.as_ptr()).collect();
        let (mut out, mut event) =
            (vec![std::ptr::null_mut(); tensors.len()], std::ptr::null_mut());
        checked!(amp_copy_start(
            self.index,
            self.id,
            tensors.as_ptr(),
            tensors.len(),
            out.as_mut_ptr(),
            &mut event,
        ))?;
        // SAFETY: on success each entry is a new tensor without another owner.
        let tensors = out.into_iter().map(|tensor| unsafe { Tensor::from_ptr(tensor) }).collect();
        Ok(DeviceCopy { event, tensors })
    }

    /// Copies the values of the tensors to host memory after the event `ready`. This thread waits
    /// for the copies. The other streams of the device do not wait.
    pub(crate) fn copies_to_host(
        self,
        ready: &CudaEvent,
        tensors: &[&Tensor],
    ) -> Result<Vec<Tensor>> {
        let handles: Vec<Handle> = tensors.iter().map(|tensor| tensor.as_ptr()).collect();
        let mut out = vec![std::ptr::null_mut(); tensors.len()];
        checked!(amp_copies_to_host(
            self.index,
            self.id,
            ready.handle(),
            handles.as_ptr(),
            handles.len(),
            out.as_mut_ptr(),
        ))?;
        // SAFETY: on success each entry is a new tensor without another owner.
        Ok(out.into_iter().map(|tensor| unsafe { Tensor::from_ptr(tensor) }).collect())
    }
}

/// Copies of host tensors on a device. The copying was started, but may not be complete.
#[derive(Debug)]
pub(crate) struct DeviceCopy {
    event: *mut c_void,
    /// The tensors on the device. Empty after [`arrive`](Self::arrive) has returned them.
    tensors: Vec<Tensor>,
}

// SAFETY: the event belongs to the device; any thread may wait for it and free it.
unsafe impl Send for DeviceCopy {}

impl DeviceCopy {
    /// Returns the tensors for use on this thread's current stream. The stream waits for the copy.
    /// The thread does not wait.
    pub(crate) fn arrive(mut self) -> Result<Vec<Tensor>> {
        let tensors = std::mem::take(&mut self.tensors);
        let handles: Vec<Handle> = tensors.iter().map(|tensor| tensor.as_ptr()).collect();
        checked!(amp_copy_arrive(self.event, handles.as_ptr(), handles.len()))?;
        Ok(tensors)
    }
}

impl Drop for DeviceCopy {
    fn drop(&mut self) {
        // SAFETY: `SideStream::copy` made the event, which is freed only here.
        unsafe { amp_copy_drop(self.event) };
    }
}

/// libtorch's debug info of a thread. It contains the observers of the thread's allocations, such
/// as the memory meter. A worker thread enters the debug info of the thread that started it, so
/// that the worker's allocations are counted for that thread.
pub(crate) struct DebugInfo(*mut c_void);

// SAFETY: the pointer is a counted reference to data that C++ only reads. The memory meters count
// atomically.
unsafe impl Send for DebugInfo {}

impl DebugInfo {
    pub(crate) fn current() -> Result<Self> {
        let mut info = std::ptr::null_mut();
        checked!(amp_debug_info_current(&mut info))?;
        Ok(Self(info))
    }

    /// Makes this thread report its allocations to the observers in this debug info.
    pub(crate) fn enter(&self) -> Result<()> {
        checked!(amp_debug_info_enter(self.0))
    }
}

impl Drop for DebugInfo {
    fn drop(&mut self) {
        // SAFETY: `current` made the pointer, which is freed only here.
        unsafe { amp_debug_info_drop(self.0) };
    }
}
