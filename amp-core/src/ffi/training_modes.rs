//! Detects operators that run in training mode on this thread (`csrc/training_modes.cpp`).

use std::{
    ffi::{CStr, c_char, c_int},
    marker::PhantomData,
};

use super::take_error;
use crate::Result;

unsafe extern "C" {
    fn amp_modes_start() -> c_int;
    fn amp_modes_stop() -> c_int;
    fn amp_modes_seen(op: *mut *const c_char) -> c_int;
}

/// Watches this thread for operators in training mode, until the watch is dropped: dropout with a
/// probability above 0, randomized leaky ReLU, and batch norm that has running statistics but uses
/// the statistics of the batch. Only one watch may exist at a time. The watch is not `Send`,
/// because its callback belongs to the thread.
pub(crate) struct WatchedModes {
    _thread: PhantomData<*const ()>,
}

impl WatchedModes {
    pub(crate) fn start() -> Result<Self> {
        checked!(amp_modes_start())?;
        Ok(Self { _thread: PhantomData })
    }

    /// Returns the first operator that ran in training mode since the watch was started.
    pub(crate) fn trained(&self) -> Result<Option<&'static str>> {
        let mut op = std::ptr::null();
        checked!(amp_modes_seen(&mut op))?;
        if op.is_null() {
            return Ok(None);
        }
        // SAFETY: the shim returns its own string constants, which are never freed.
        let op = unsafe { CStr::from_ptr::<'static>(op) };
        let name = op.to_str().unwrap_or("an operator").trim_start_matches("aten::");
        Ok(Some(name.trim_start_matches('_')))
    }
}

impl Drop for WatchedModes {
    fn drop(&mut self) {
        // The call removes a callback. Its error is ignored, because `drop` cannot return it.
        let _ = checked!(amp_modes_stop());
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn trained(run: impl FnOnce(&Tensor)) -> Option<&'static str> {
        let watch = WatchedModes::start().expect("a callback");
        run(&Tensor::ones([4, 4], (Kind::Float, Device::Cpu)));
        watch.trained().expect("a look")
    }

    fn batch_norm(input: &Tensor, statistics: Option<&Tensor>, training: bool) {
        let weight = Option::<&Tensor>::None;
        let _ =
            input.batch_norm(weight, weight, statistics, statistics, training, 0.1, 1e-5, false);
    }

    fn attention(input: &Tensor, p: f64) {
        let mask = Option::<&Tensor>::None;
        let _ =
            Tensor::scaled_dot_product_attention(input, input, input, mask, p, false, None, false);
    }

    #[test]
    fn operators_that_train_are_seen() {
        assert_eq!(trained(|x| drop(x.dropout(0.5, true))), Some("dropout"));
        assert_eq!(trained(|x| drop(x.alpha_dropout(0.5, true))), Some("alpha_dropout"));
        let statistics = Tensor::ones([4], (Kind::Float, Device::Cpu));
        let seen = trained(|x| batch_norm(x, Some(&statistics), true));
        assert_eq!(seen, Some("batch_norm_impl_index"));
        let seen = trained(|x| attention(&x.view([1, 1, 4, 4]), 0.5));
        assert_eq!(seen, Some("scaled_dot_product_attention_math"));
    }

    /// Checks that none of these operators is reported: dropout, batch norm and attention in
    /// evaluation mode, dropout with probability 0, batch norm without running statistics, and a
    /// matrix product.
    #[test]
    fn operators_that_evaluate_are_not() {
        assert_eq!(trained(|x| drop(x.dropout(0.5, false))), None);
        assert_eq!(trained(|x| drop(x.dropout(0.0, true))), None);
        let statistics = Tensor::ones([4], (Kind::Float, Device::Cpu));
        assert_eq!(trained(|x| batch_norm(x, Some(&statistics), false)), None);
        assert_eq!(trained(|x| batch_norm(x, None, true)), None);
        assert_eq!(trained(|x| attention(&x.view([1, 1, 4, 4]), 0.0)), None);
        assert_eq!(trained(|x| drop(x.matmul(x))), None);
    }

    /// Checks that dropout is not reported if it runs after a watch was dropped and before the next
    /// watch starts.
    #[test]
    fn nothing_is_watched_afterwards() {
        drop(WatchedModes::start().expect("a callback"));
        let ones = Tensor::ones([4], (Kind::Float, Device::Cpu));
        drop(ones.dropout(0.5, true));
        assert_eq!(trained(|_| ()), None);
    }
}
