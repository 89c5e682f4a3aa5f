//! Statistics of gradients that backward passes do not keep (`csrc/gradient_figures.cpp`).

use std::ffi::c_int;

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_watch_gradient(tensor: Handle, out: *mut *mut C_tensor) -> c_int;
    fn amp_forget_twin(tensor: Handle) -> c_int;
}

/// Statistics of a tensor's gradient, available after a backward pass has computed it.
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

    /// Returns the numbers of NaN and infinite elements and the largest magnitude; `None` if there
    /// was no gradient.
    pub(crate) fn read(&self) -> Result<Option<(i64, i64, f64)>> {
        let figures = Vec::<f64>::try_from(&self.0)?;
        Ok((figures[0] != 0.0).then(|| (figures[1] as i64, figures[2] as i64, figures[3])))
    }
}

/// Drops the cached 16-bit cast of `tensor`, which the kernel that made `tensor` wrote as well.
/// Otherwise matrix products in an autocast region would read the cast, and their gradients would
/// bypass `tensor`. The values are the same either way.
pub(crate) fn drop_cached_cast(tensor: &Tensor) -> Result<()> {
    checked!(amp_forget_twin(tensor.as_ptr()))
}
