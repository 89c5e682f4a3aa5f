//! Captures and launches CUDA graphs (`csrc/graph.cpp`).

use std::{
    cell::Cell,
    ffi::{c_int, c_void},
    marker::PhantomData,
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use tch::{Device, Tensor};

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

/// Locked for writing while a thread captures a graph. Other threads lock it for reading while they
/// do work that must not run during a capture.
static CAPTURE: RwLock<()> = RwLock::new(());

thread_local! {
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
    /// The number of [`BetweenCaptures`] guards of this thread.
    static GUARDS: Cell<u32> = const { Cell::new(0) };
}

/// Returns whether this thread is capturing a graph. Captured work does not run yet, so the host
/// cannot read its results.
pub(crate) fn is_capturing() -> bool {
    CAPTURING.get()
}

/// A guard. While it exists, no other thread captures a graph.
#[derive(Debug)]
pub(crate) struct BetweenCaptures {
    _lock: Option<RwLockReadGuard<'static, ()>>,
}

impl Drop for BetweenCaptures {
    fn drop(&mut self) {
        GUARDS.set(GUARDS.get() - 1);
    }
}

/// Waits until no other thread captures a graph, and prevents captures while the guard exists. Hold
/// the guard while you wait for the whole device, or draw random numbers on the device. During a
/// capture, both would fail or make the capture invalid. (A capture changes the state of the
/// device's random generator for all threads.)
pub(crate) fn between_captures() -> BetweenCaptures {
    // A thread takes the read lock only once. If another thread waits for the write lock, a second
    // read lock would have to wait for that thread, which itself waits for the first read lock.
    let locks = GUARDS.get() == 0 && !is_capturing();
    let lock = locks.then(|| CAPTURE.read().unwrap_or_else(PoisonError::into_inner));
    GUARDS.set(GUARDS.get() + 1);
    BetweenCaptures { _lock: lock }
}

/// Calls [`between_captures`] for work on this device. Returns `None` on the CPU, which has no
/// captures.
pub(crate) fn between_captures_on(device: Device) -> Option<BetweenCaptures> {
    device.is_cuda().then(between_captures)
}

/// A guard that makes [`is_capturing`] return false again when it is dropped, also after a panic.
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
    /// The stream of the capture belongs to the thread that captured the graph. This field keeps
    /// the graph from being sent to another thread.
    _not_send: PhantomData<*const ()>,
}

impl CudaGraph {
    /// Captures the operations that `body` starts on the device, without executing them. Returns
    /// the graph and the result of `body`. Waits while other threads hold [`BetweenCaptures`].
    ///
    /// # Errors
    /// When this thread itself holds [`BetweenCaptures`], or the work cannot be captured.
    pub(crate) fn capture<T>(index: usize, body: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        if GUARDS.get() > 0 {
            return Err(Error::config(
                "the run was started within a step of another run: start it between two steps",
            ));
        }
        let _alone = CAPTURE.write().unwrap_or_else(PoisonError::into_inner);
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

    /// Launches the graph and then copies `from`, a tensor on the device, to `to`, which is in
    /// pinned memory. The returned event marks the end of the copy.
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
    assert_eq!(parameters.len(), grads.len(), "each parameter needs one gradient");
    checked!(amp_set_grads(parameters.as_ptr(), grads.as_ptr(), grads.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that no thread can capture while a thread holds guards. The thread with the guard
    /// gets an error if it tries to capture. Otherwise it would wait for itself forever.
    #[test]
    fn guards_exclude_captures() {
        let _outer = between_captures();
        drop(between_captures());
        let locked = || {
            std::thread::scope(|scope| {
                scope.spawn(|| CAPTURE.try_write().is_err()).join().expect("no panic")
            })
        };
        assert!(locked(), "the outer guard still exists");
        let refused = CudaGraph::capture(0, || Ok(())).expect_err("this thread holds a guard");
        assert!(refused.to_string().contains("within a step of another run"), "{refused}");
    }
}
