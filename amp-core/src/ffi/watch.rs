//! Figures of gradients that backward passes do not keep (`csrc/watch.cpp`).

use std::ffi::c_int;

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_watch_gradient(tensor: Handle, out: *mut *mut C_tensor) -> c_int;
    fn amp_forget_cached_cast(tensor: Handle) -> c_int;
}

/// What is known of the gradient of a tensor once a backward pass has computed it.
#[derive(Debug)]
pub(crate) struct WatchedGradient(Tensor);

impl WatchedGradient {
    /// Watches the gradient of `tensor`, which must require one.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        let mut out = std::ptr::null_mut();
        checked!(amp_watch_gradient(tensor.as_ptr(), &mut out))?;
        // SAFETY: on success a new tensor without another owner.
        Ok(Self(unsafe { Tensor::from_ptr(out) }))
    }

    /// Its NaNs, its infinities and its largest magnitude; `None` where no gradient has come.
    pub(crate) fn read(&self) -> Result<Option<(i64, i64, f64)>> {
        let figures = Vec::<f64>::try_from(&self.0)?;
        Ok((figures[0] != 0.0).then(|| (figures[1] as i64, figures[2] as i64, figures[3])))
    }
}

/// Lets later layers read `tensor` itself. Otherwise matrix products in an autocast region read the copy in
/// 16 bits that the tensor's kernel wrote beside it, and their gradients bypass `tensor`. The numbers are
/// the same.
pub(crate) fn forget_cached_cast(tensor: &Tensor) -> Result<()> {
    checked!(amp_forget_cached_cast(tensor.as_ptr()))
}
