//! Autocast with a device and a dtype, as a guard that also leaves on panic.
//!
//! libtorch keeps the switch and the dtype per thread and device type, and one cache of cast
//! weights per process, cleared when the outermost region ends (ATen/autocast_mode.cpp).

use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::{Error, Result, ffi};

/// The autocast state of a device type on this thread, for tests and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutocastState {
    /// Whether eligible operations are cast.
    pub enabled: bool,
    /// The dtype they are cast to, if it is f16 or bf16.
    pub dtype: Option<Kind>,
}

/// Reads the state.
///
/// # Errors
/// When libtorch does.
pub fn autocast_state(device: Device) -> Result<AutocastState> {
    let state = ffi::autocast_state(device.is_cuda())?;
    let dtype = [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double]
        .into_iter()
        .find(|kind| ffi::scalar_type(*kind).is_ok_and(|number| number == state.dtype));
    Ok(AutocastState { enabled: state.enabled, dtype })
}

/// An autocast region: it begins when the guard is made and ends when it is dropped, in reverse
/// order of nesting. Not `Send`: the state belongs to the thread.
#[derive(Debug)]
#[must_use = "the region ends when the guard is dropped"]
pub struct AutocastGuard {
    cuda: bool,
    outer: ffi::AutocastState,
    _thread: PhantomData<*const ()>,
}

impl AutocastGuard {
    /// Casts eligible operations on `device` to `kind`.
    ///
    /// # Errors
    /// When `kind` is neither f16 nor bf16.
    pub fn enter(device: Device, kind: Kind) -> Result<Self> {
        if !matches!(kind, Kind::Half | Kind::BFloat16) {
            return Err(Error::config(format!(
                "autocast runs in float16 or bfloat16, not {}",
                super::dtype_name(kind)
            )));
        }
        Self::switch(device, Some(kind))
    }

    /// Switches autocast off inside an outer region.
    ///
    /// # Errors
    /// When libtorch does.
    pub fn off(device: Device) -> Result<Self> {
        Self::switch(device, None)
    }

    fn switch(device: Device, kind: Option<Kind>) -> Result<Self> {
        let cuda = device.is_cuda();
        let outer = ffi::autocast_state(cuda)?;
        let dtype = kind.map(ffi::scalar_type).transpose()?.unwrap_or(outer.dtype);
        ffi::autocast_enter()?;
        // Made before the switch, so that a refusal also leaves the nesting as it was.
        let guard = Self { cuda, outer, _thread: PhantomData };
        ffi::set_autocast(cuda, ffi::AutocastState { enabled: kind.is_some(), dtype, ..outer })?;
        Ok(guard)
    }
}

impl Drop for AutocastGuard {
    fn drop(&mut self) {
        // Both only assign thread-local state; if they ever failed, a drop could not say so.
        let _ = ffi::autocast_leave();
        let _ = ffi::set_autocast(self.cuda, self.outer);
    }
}
