//! Detects operators that combine a column `[N, 1]` with a vector `[N]` (`csrc/broadcasts.cpp`).

use std::{
    ffi::{CStr, c_char, c_int},
    marker::PhantomData,
};

use super::take_error;
use crate::Result;

unsafe extern "C" {
    fn amp_broadcasts_start() -> c_int;
    fn amp_broadcasts_stop() -> c_int;
    fn amp_broadcasts_seen(op: *mut *const c_char, operands: *mut *const c_char) -> c_int;
}

/// Watches this thread for elementwise operators that combine shapes such as `[N, 1]` and `[N]`,
/// one of which depends on the weights. libtorch broadcasts them to `[N, N]`. The watch ends when
/// it is dropped. Only one watch may exist at a time. The watch is not `Send`, because its callback
/// belongs to the thread.
pub(crate) struct WatchedBroadcasts {
    _thread: PhantomData<*const ()>,
}

/// An operator that broadcasts a column and a vector.
pub(crate) struct Broadcast {
    pub(crate) operator: String,
    /// The shapes of the two operands, such as `[8, 1] and [8]`.
    pub(crate) operands: String,
}

impl WatchedBroadcasts {
    pub(crate) fn start() -> Result<Self> {
        checked!(amp_broadcasts_start())?;
        Ok(Self { _thread: PhantomData })
    }

    /// Returns the first such operator that ran since the watch was started.
    pub(crate) fn first(&self) -> Result<Option<Broadcast>> {
        let (mut op, mut operands) = (std::ptr::null(), std::ptr::null());
        checked!(amp_broadcasts_seen(&mut op, &mut operands))?;
        if op.is_null() {
            return Ok(None);
        }
        // SAFETY: both pointers are C strings of the shim. They are valid until the next watch of
        // this thread starts, and they are copied here.
        let (op, operands) = unsafe { (CStr::from_ptr(op), CStr::from_ptr(operands)) };
        let operator = op.to_string_lossy().trim_start_matches("aten::").to_owned();
        Ok(Some(Broadcast { operator, operands: operands.to_string_lossy().into_owned() }))
    }
}

impl Drop for WatchedBroadcasts {
    fn drop(&mut self) {
        // The call removes a callback. Its error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_broadcasts_stop());
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tch::{Device, Kind, Tensor};

    use super::*;

    /// Returns tensors of ones with the shapes `a` and `b`. The first one requires a gradient.
    fn pair(a: &[i64], b: &[i64]) -> (Tensor, Tensor) {
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        (ones(a).set_requires_grad(true), ones(b))
    }

    fn seen(run: impl FnOnce()) -> Option<String> {
        let watch = WatchedBroadcasts::start().expect("a callback");
        run();
        let first = watch.first().expect("a look");
        first.map(|Broadcast { operator, operands }| format!("{operator} of {operands}"))
    }

    #[rstest]
    #[case::output_is_a_column(&[8, 1], &[8], "sub of [8, 1] and [8]")]
    #[case::target_is_a_column(&[8], &[8, 1], "sub of [8] and [8, 1]")]
    #[case::square_sequences(&[4, 4, 1], &[4, 4], "sub of [4, 4, 1] and [4, 4]")]
    fn a_column_and_a_vector_are_seen(#[case] a: &[i64], #[case] b: &[i64], #[case] text: &str) {
        let (a, b) = pair(a, b);
        assert_eq!(seen(|| drop(&a - &b)).as_deref(), Some(text));
        assert!(seen(|| drop(a.f_mse_loss(&b, tch::Reduction::Mean))).is_some());
    }

    /// Checks that other broadcasts are not reported: equal shapes, a scalar, a bias, explicit
    /// pairs, and batches of one example.
    #[rstest]
    #[case(&[8, 1], &[8, 1])]
    #[case(&[8, 1], &[])]
    #[case(&[8, 4], &[4])]
    #[case(&[8, 1], &[4])]
    #[case(&[8, 1], &[1, 8])]
    #[case(&[1, 1], &[1])]
    fn other_broadcasts_are_not(#[case] a: &[i64], #[case] b: &[i64]) {
        let (a, b) = pair(a, b);
        assert_eq!(seen(|| drop(&a - &b)), None);
    }

    /// Checks that tables of all pairs of one tensor are not reported.
    #[test]
    fn pairs_of_one_tensor_are_not() {
        let (weights, data) = pair(&[8], &[8]);
        for tensor in [weights, data] {
            assert_eq!(seen(|| drop(tensor.unsqueeze(1) - &tensor)), None);
        }
    }
}
