//! A fault in fused layers that public hooks cannot plant. Only the self-test plants it, and then
//! examines which check reports it.

use std::cell::Cell;

use tch::Tensor;

use crate::Result;

thread_local! {
    static FACTOR: Cell<Option<f64>> = const { Cell::new(None) };
}

/// While it exists, the output of fused layers on this thread is multiplied by a factor. On a CPU,
/// which has no fused kernels, groups that a GPU would fuse run one after the other and count as
/// fused.
#[doc(hidden)]
#[derive(Debug)]
pub struct FusedTimes(());

impl FusedTimes {
    /// Plants the fault; a factor of 1 changes no number.
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

/// Whether groups of layers count as fused on a CPU.
pub(super) fn fuses_on_host() -> bool {
    FACTOR.get().is_some()
}

/// The output of fused layers, with the fault.
pub(super) fn of_group(output: Option<Tensor>) -> Result<Option<Tensor>> {
    match (output, FACTOR.get()) {
        (Some(output), Some(factor)) if factor != 1.0 => Ok(Some(output.f_mul_scalar(factor)?)),
        (output, _) => Ok(output),
    }
}
