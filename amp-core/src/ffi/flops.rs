//! Counts the floating-point operations of the matrix products that this thread computes
//! (`csrc/flops.cpp`).

use std::{
    ffi::{c_double, c_int},
    marker::PhantomData,
};

use super::take_error;
use crate::Result;

unsafe extern "C" {
    fn amp_flops_start() -> c_int;
    fn amp_flops_stop() -> c_int;
    fn amp_flops_read(count: *mut c_double) -> c_int;
}

/// Counts the floating-point operations of this thread's matrix products until the counter is
/// dropped. Only one counter may exist at a time. The counter is not `Send`, because its callback
/// belongs to the thread.
pub(crate) struct FlopCounter {
    _thread: PhantomData<*const ()>,
}

impl FlopCounter {
    pub(crate) fn start() -> Result<Self> {
        checked!(amp_flops_start())?;
        Ok(Self { _thread: PhantomData })
    }

    /// Returns the number of floating-point operations since the counter was started.
    pub(crate) fn read(&self) -> Result<u64> {
        let mut count = 0.0;
        checked!(amp_flops_read(&mut count))?;
        Ok(count as u64)
    }
}

impl Drop for FlopCounter {
    fn drop(&mut self) {
        // The call removes a callback. Its error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_flops_stop());
    }
}
