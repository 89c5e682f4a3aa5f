//! Faults that public hooks cannot plant: in fused layers, and in a single layer. Only the self-test
//! plants them, and then examines which check reports them.

use std::cell::{Cell, RefCell};

use tch::{Kind, Tensor};

use crate::{Result, precision::Tensors};

thread_local! {
    static FACTOR: Cell<Option<f64>> = const { Cell::new(None) };
    static LAYER: RefCell<Option<String>> = const { RefCell::new(None) };
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

/// Returns whether groups of layers count as fused on a CPU.
pub(super) fn fuses_on_host() -> bool {
    FACTOR.get().is_some()
}

/// Returns whether a fault is planted on this thread.
pub(super) fn is_planted() -> bool {
    fuses_on_host() || LAYER.with_borrow(Option::is_some)
}

/// Returns the output of fused layers, with the fault.
pub(super) fn of_group(output: Option<Tensor>) -> Result<Option<Tensor>> {
    match (output, FACTOR.get()) {
        (Some(output), Some(factor)) if factor != 1.0 => Ok(Some(output.f_mul_scalar(factor)?)),
        (output, _) => Ok(output),
    }
}

/// While it lives, the 16-bit results that the module at a path of this thread's models returns lose their last two
/// binary digits, as where sums are kept in 16 bits. Wider results stay, and so do gradients.
#[doc(hidden)]
#[derive(Debug)]
pub struct LayerLosesDigits(());

impl LayerLosesDigits {
    /// Begins.
    pub fn new(path: impl Into<String>) -> Self {
        LAYER.set(Some(path.into()));
        Self(())
    }
}

impl Drop for LayerLosesDigits {
    fn drop(&mut self) {
        LAYER.set(None);
    }
}

/// Returns the output of the module at `path`, with the mistake.
pub(super) fn of_layer<T: Tensors>(path: &str, output: T) -> Result<T> {
    if LAYER.with_borrow(|layer| layer.as_deref() != Some(path)) {
        return Ok(output);
    }
    output.each(&mut |tensor| {
        if !matches!(tensor.kind(), Kind::Half | Kind::BFloat16) {
            return Ok(tensor.shallow_clone());
        }
        let exact = tensor.f_detach()?.f_contiguous()?;
        let bits = exact.f_view_dtype(Kind::Int16)?.f_bitwise_and(-4)?;
        // The difference is exact, and so is the sum.
        let lost = bits.f_view_dtype(tensor.kind())?.f_sub(&exact)?;
        Ok(tensor.f_add(&lost)?)
    })
}
