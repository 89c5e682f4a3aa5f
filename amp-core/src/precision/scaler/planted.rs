//! A fault inside the scaler, which cannot be planted through public hooks. Only the self-test
//! plants it, to show which check reports it.

use std::cell::Cell;

thread_local! {
    static GROWS_ON_HOST_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// A guard: while it exists, the scale of scalers on this thread grows only on the host, and not on
/// the device.
#[doc(hidden)]
#[derive(Debug)]
pub struct GrowsOnHostAlone(());

impl GrowsOnHostAlone {
    /// Plants the fault.
    #[expect(clippy::new_without_default, reason = "the fault lasts until this guard is dropped")]
    pub fn new() -> Self {
        GROWS_ON_HOST_ALONE.set(true);
        Self(())
    }
}

impl Drop for GrowsOnHostAlone {
    fn drop(&mut self) {
        GROWS_ON_HOST_ALONE.set(false);
    }
}

/// Returns the growth interval for the rule on the device. With the fault, it returns an interval
/// that no run reaches.
pub(super) fn device_interval(interval: i64) -> i64 {
    if GROWS_ON_HOST_ALONE.get() { i64::from(i32::MAX) } else { interval }
}
