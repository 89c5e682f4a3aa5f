//! Captures and launches CUDA graphs (`csrc/graph.cpp`).

use std::{
    cell::Cell,
    ffi::{c_int, c_void},
    marker::PhantomData,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tch::Tensor;

use super::{CudaEvent, Handle, handles, take_error};
use crate::{Result, error::Error};

unsafe extern "C" {
    fn amp_graph_begin(index: c_int, out: *mut *mut c_void) -> c_int;
    fn amp_graph_end(capture: *mut c_void) -> c_int;
    fn amp_graph_drop(capture: *mut c_void) -> c_int;
    fn amp_graph_launch(
        graph: *mut c_void,
        from: Handle,
        to: Handle,
        event: *mut *mut c_void,
    ) -> c_int;
    fn amp_set_grads(parameters: *const Handle, grads: *const Handle, count: usize) -> c_int;
}

/// Locked while a thread captures a graph. A process can capture only one graph at a time.
static CAPTURE: Mutex<()> = Mutex::new(());

thread_local! {
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread's work on the device is being captured, so that the host cannot read
/// its results.
pub(crate) fn is_capturing() -> bool {
    CAPTURING.get()
}

/// Waits until no other thread captures a graph, and prevents captures while the guard exists. Call
/// this before an operation that waits for a whole device: during a capture, such an operation of
/// any thread fails and makes the capture invalid. Returns `None` if this thread is capturing.
pub(crate) fn between_captures() -> Option<MutexGuard<'static, ()>> {
    (!is_capturing()).then(|| CAPTURE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A guard. When it is dropped, also after a panic, [`is_capturing`] returns false again.
struct Capturing;

impl Drop for Capturing {
    fn drop(&mut self) {
        CAPTURING.set(false);
    }
}

/// A CUDA graph: captured work of a device, which is launched as a whole. The memory of its tensors
/// stays reserved until the graph is dropped.
#[derive(Debug)]
pub(crate) struct CudaGraph {
    handle: *mut c_void,
    /// The stream of the capture belongs to the thread. This field keeps the graph from being sent
    /// to another thread.
    _not_send: PhantomData<*const ()>,
}

impl CudaGraph {
    /// Captures the operations that `body` starts on the device, without executing them. Returns
    /// the graph and the result of `body`. Waits while another thread captures a graph.
    pub(crate) fn capture<T>(index: usize, body: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let _alone = between_captures();
        let mut handle = std::ptr::null_mut();
        checked!(amp_graph_begin(index as c_int, &mut handle))?;
        let graph = Self { handle, _not_send: PhantomData };
        let noted = {
            CAPTURING.set(true);
            let _capturing = Capturing;
            body()
        };
        let ended: Result<(), Error> = checked!(amp_graph_end(graph.handle));
        // The error of `body` is returned first, because it is more specific than the error of the
        // capture.
        let noted = noted?;
        ended?;
        Ok((graph, noted))
    }

    /// Launches the graph and then copies `from` to `to`, which is in pinned memory. The returned
    /// event marks the end of the copy.
    pub(crate) fn launch(&self, from: &Tensor, to: &Tensor) -> Result<CudaEvent> {
        let mut event = std::ptr::null_mut();
        checked!(amp_graph_launch(self.handle, from.as_ptr(), to.as_ptr(), &mut event))?;
        Ok(CudaEvent::from_handle(event))
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // The error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_graph_drop(self.handle));
    }
}

/// Makes each tensor of `grads` the gradient of the parameter at the same index.
pub(crate) fn set_grads<'a>(
    parameters: impl IntoIterator<Item = &'a Tensor>,
    grads: &[Tensor],
) -> Result<()> {
    let (parameters, grads) = (handles(parameters), handles(grads));
    assert_eq!(parameters.len(), grads.len(), "a gradient for each parameter");
    checked!(amp_set_grads(parameters.as_ptr(), grads.as_ptr(), grads.len()))
}
