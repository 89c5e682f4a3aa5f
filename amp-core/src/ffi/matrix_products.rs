//! Records which matrix products this thread computes and which random numbers it draws
//! (`csrc/matrix_products.cpp`).

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int},
    marker::PhantomData,
};

use tch::Kind;

use super::take_error;
use crate::Result;

unsafe extern "C" {
    fn amp_products_start() -> c_int;
    fn amp_products_stop() -> c_int;
    fn amp_products_pause(by: c_int) -> c_int;
    fn amp_products_take(
        place: usize,
        op: *mut *const c_char,
        dtype: *mut c_int,
        draws: *mut c_int,
    ) -> c_int;
}

thread_local! {
    /// Whether the operators of this thread are recorded.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// Records the matrix products of this thread, and its operators that draw random numbers, until
/// the recorder is dropped. The recorder is not `Send`, because its callback belongs to the thread.
pub(crate) struct WatchedProducts {
    _thread: PhantomData<*const ()>,
}

impl WatchedProducts {
    pub(crate) fn start() -> Result<Self> {
        checked!(amp_products_start())?;
        WATCHED.set(true);
        Ok(Self { _thread: PhantomData })
    }
}

impl Drop for WatchedProducts {
    fn drop(&mut self) {
        // The call removes a callback. Its error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_products_stop());
        WATCHED.set(false);
    }
}

/// A guard. While the guard exists, no operator of this thread is recorded.
pub(crate) struct PausedProducts {
    paused: bool,
    _thread: PhantomData<*const ()>,
}

impl PausedProducts {
    pub(crate) fn pause() -> Self {
        // If the call fails, recording continues. This is unlikely, because the call only
        // increments a counter of pauses.
        let paused = WATCHED.get() && checked!(amp_products_pause(1)).is_ok();
        Self { paused, _thread: PhantomData }
    }
}

impl Drop for PausedProducts {
    fn drop(&mut self) {
        if self.paused {
            let _ = checked!(amp_products_pause(-1));
        }
    }
}

/// A recorded operator of libtorch.
pub(crate) struct Recorded {
    pub(crate) operator: &'static str,
    /// The dtype of the operator's output, or the dtype in which it draws random numbers.
    pub(crate) kind: Kind,
    /// Whether the operator draws random numbers. Otherwise it is a matrix product.
    pub(crate) draws: bool,
}

/// Returns the operators that were recorded since the last call, in order.
pub(crate) fn take_products() -> Result<Vec<Recorded>> {
    let mut recorded = Vec::new();
    for place in 0.. {
        let (mut op, mut dtype, mut draws) = (std::ptr::null(), 0, 0);
        checked!(amp_products_take(place, &mut op, &mut dtype, &mut draws))?;
        if op.is_null() {
            break;
        }
        // SAFETY: the shim returns its own string constants, which are never freed.
        let op = unsafe { CStr::from_ptr::<'static>(op) };
        let operator = op.to_str().map_or("an operator", |op| op.trim_start_matches("aten::"));
        let kinds = [Kind::Half, Kind::Float, Kind::Double, Kind::BFloat16];
        let kind = kinds.into_iter().find(|kind| super::scalar_type(*kind).ok() == Some(dtype));
        recorded.extend(kind.map(|kind| Recorded { operator, kind, draws: draws != 0 }));
    }
    Ok(recorded)
}
