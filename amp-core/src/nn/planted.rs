//! A mistake in what runs some layers in one, which no hook reaches. The self-test plants it and looks at what finds
//! it; nothing else does.

use std::cell::Cell;

use tch::Tensor;

use crate::Result;

thread_local! {
    static FACTOR: Cell<Option<f64>> = const { Cell::new(None) };
}

/// While it lives, what layers of this thread that run in one return is multiplied by a factor. On a CPU, which has
/// no kernels for them, they run one after the other where a GPU would run them in one.
#[doc(hidden)]
#[derive(Debug)]
pub struct FusedTimes(());

impl FusedTimes {
    /// Begins; a factor of 1 changes no number.
    pub fn new(factor: f64) -> Self {
        FACTOR.set(Some(factor));
        Self(())
    }
}

impl Drop for FusedTimes {
    fn drop(&mut self) {
        FACTOR.set(None);
    }
}

/// Whether layers run in one on a CPU as well.
pub(super) fn fuses_on_host() -> bool {
    FACTOR.get().is_some()
}

/// The output of layers that ran in one, with the mistake.
pub(super) fn of_group(output: Option<Tensor>) -> Result<Option<Tensor>> {
    match (output, FACTOR.get()) {
        (Some(output), Some(factor)) if factor != 1.0 => Ok(Some(output.f_mul_scalar(factor)?)),
        (output, _) => Ok(output),
    }
}
