//! A deliberate fault in the scaler that cannot be caused through public hooks. `cargo amp
//! selftest` causes it, to test which of the project's checks reports it.

use std::cell::Cell;

thread_local! {
    static GROWS_ON_HOST_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// A guard that causes the fault. While it exists, the loss scale of scalers on this thread grows
/// on the host, but not on the device.
#[doc(hidden)]
#[derive(Debug)]
pub struct GrowsOnHostAlone(());

impl GrowsOnHostAlone {
    /// Begins the fault, which lasts until this guard is dropped.
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

/// Returns the growth interval for libtorch's update of the scale on the device. With the fault,
/// returns an interval that is longer than any run.
pub(super) fn device_interval(interval: i64) -> i64 {
    if GROWS_ON_HOST_ALONE.get() { i64::from(i32::MAX) } else { interval }
}
