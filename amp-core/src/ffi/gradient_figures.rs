//! Statistics and rounding of gradients within a backward pass (`csrc/gradient_figures.cpp`).

use std::ffi::c_int;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use super::{Handle, scalar_type, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_watch_gradient(tensor: Handle, out: *mut *mut C_tensor) -> c_int;
    fn amp_round_gradient(tensor: Handle, dtype: c_int, out: *mut *mut C_tensor) -> c_int;
    fn amp_forget_twin(tensor: Handle) -> c_int;
}

/// Statistics of the gradient of one tensor. They can be read after a backward pass has computed
/// the gradient.
#[derive(Debug)]
pub(crate) struct WatchedGradient(Tensor);

impl WatchedGradient {
    /// Starts to watch the gradient of `tensor`, which must require a gradient.
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        let mut out = std::ptr::null_mut();
        checked!(amp_watch_gradient(tensor.as_ptr(), &mut out))?;
        // SAFETY: on success `out` is a new tensor without another owner.
        Ok(Self(unsafe { Tensor::from_ptr(out) }))
    }

    /// Returns the number of NaN elements, the number of infinite elements, and the largest
    /// magnitude in the gradient. Returns `None` if no gradient was computed.
    pub(crate) fn read(&self) -> Result<Option<(i64, i64, f64)>> {
        let figures = Vec::<f64>::try_from(&self.0)?;
        Ok((figures[0] != 0.0).then(|| (figures[1] as i64, figures[2] as i64, figures[3])))
    }
}

/// Returns an alias of `tensor`. The backward pass adds up the gradients from all uses of the
/// alias, rounds the sum to the dtype `to`, and passes the rounded sum on to `tensor`.
pub(crate) fn round_gradient(tensor: &Tensor, to: Kind) -> Result<Tensor> {
    let (to, mut out) = (scalar_type(to)?, std::ptr::null_mut());
    checked!(amp_round_gradient(tensor.as_ptr(), to, &mut out))?;
    // SAFETY: on success `out` is a new tensor without another owner.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Drops the 16-bit copy of `tensor` that the kernel which computed `tensor` wrote as well.
/// Otherwise matrix products under autocast would read this copy, and their gradients would bypass
/// `tensor`. After this call autocast casts `tensor` itself, to the same values.
pub(crate) fn drop_cached_cast(tensor: &Tensor) -> Result<()> {
    checked!(amp_forget_twin(tensor.as_ptr()))
}
