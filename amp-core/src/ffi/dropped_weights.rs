//! Records which attention weights dropout sets to zero on a CUDA device, and drops the same weights
//! in a later forward pass (`csrc/dropped_weights.cpp`).

use std::{
    ffi::{c_int, c_void},
    marker::PhantomData,
};

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_dropped_weights_new(out: *mut *mut c_void) -> c_int;
    fn amp_dropped_weights_free(freed: *mut c_void) -> c_int;
    fn amp_dropped_weights_start(of: *mut c_void, what: c_int) -> c_int;
    fn amp_dropped_weights_stop() -> c_int;
    fn amp_dropped_weights_read(of: *const c_void, count: *mut i64, differ: *mut c_int) -> c_int;
    fn amp_dropped_weights_dropout(weights: Handle, p: f64, out: *mut *mut C_tensor) -> c_int;
}

/// The dropout masks of scaled dot-product attention in a forward pass on a CUDA device.
///
/// On CUDA the mask depends on the attention kernel as well as on the random generator, and libtorch
/// chooses the kernel by dtype. So a model under 32-true drops other attention weights than the same
/// model under 16-mixed with the same random numbers. The gate (`cargo amp gate`) compares the two.
/// It records the masks in the run that it checks, and applies them in the passes under 32-true.
///
/// Calls on other devices are neither recorded nor changed.
#[derive(Debug)]
pub struct DroppedWeights(*mut c_void);

impl DroppedWeights {
    /// Creates an empty record.
    ///
    /// # Errors
    /// When there is no memory for it, or libtorch does not accept a wrapper of its attention.
    pub fn new() -> Result<Self> {
        let mut masks = std::ptr::null_mut();
        checked!(amp_dropped_weights_new(&mut masks))?;
        Ok(Self(masks))
    }

    /// Records the mask of each attention of this thread that has dropout, until the returned guard
    /// is dropped. The attention itself and the random generator do not change. Each mask has a byte
    /// for each attention weight, `[batch, heads, queries, keys]`.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn record(&self) -> Result<DroppedWeightsPass<'_>> {
        self.start(0)
    }

    /// Drops the recorded attention weights in the same calls of this thread, until the returned
    /// guard is dropped. The random generator moves as far as in the recorded pass.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn follow(&self) -> Result<DroppedWeightsPass<'_>> {
        self.start(1)
    }

    fn start(&self, what: c_int) -> Result<DroppedWeightsPass<'_>> {
        checked!(amp_dropped_weights_start(self.0, what))?;
        Ok(DroppedWeightsPass(PhantomData))
    }

    /// Returns whether no call is recorded: the pass ran no attention with dropout on CUDA.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.read()?.0 == 0)
    }

    /// Returns whether a pass that followed ran other calls of attention than the recorded pass:
    /// another number of calls, or weights of other shapes. Such calls used other masks.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn differ(&self) -> Result<bool> {
        Ok(self.read()?.1)
    }

    fn read(&self) -> Result<(i64, bool)> {
        let (mut count, mut differ) = (0, 0);
        checked!(amp_dropped_weights_read(self.0, &mut count, &mut differ))?;
        Ok((count, differ != 0))
    }
}

impl Drop for DroppedWeights {
    fn drop(&mut self) {
        // The call frees memory. Its error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_dropped_weights_free(self.0));
    }
}

/// A guard. While it exists, the attention masks of this thread are recorded or followed. Only one
/// may exist at a time. It is not `Send`, because the state belongs to the thread.
#[derive(Debug)]
#[must_use = "masks are recorded or followed until this guard is dropped"]
pub struct DroppedWeightsPass<'m>(PhantomData<(&'m DroppedWeights, *const ())>);

impl Drop for DroppedWeightsPass<'_> {
    fn drop(&mut self) {
        // The call sets variables of this thread. Its error is ignored, because `drop` cannot return
        // it.
        let _ = checked!(amp_dropped_weights_stop());
    }
}

/// Applies dropout with probability `p` to attention weights, `[…, heads, queries, keys]`. In a pass
/// of [`DroppedWeights::follow`], drops the recorded weights.
pub(crate) fn weights_dropout(weights: &Tensor, p: f64) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    checked!(amp_dropped_weights_dropout(weights.as_ptr(), p, &mut out))?;
    // SAFETY: on success this is a new tensor without another owner.
    Ok(unsafe { Tensor::from_ptr(out) })
}
