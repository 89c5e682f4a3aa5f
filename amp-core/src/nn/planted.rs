//! Faults (deliberate mistakes) in fused layers and in single layers that cannot be made through
//! public hooks. Only the self-test plants them in a model, to show which check reports them.

use std::cell::{Cell, RefCell};

use tch::{Kind, Tensor};

use crate::{Result, precision::Tensors};

thread_local! {
    static FACTOR: Cell<Option<f64>> = const { Cell::new(None) };
    static LAYER: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A guard. While it exists, the output of fused layers on this thread is multiplied by a factor. A
/// CPU has no kernels for fused layers. Layers that a GPU would fuse run one by one there, and
/// their output is multiplied as if they were fused.
#[doc(hidden)]
#[derive(Debug)]
pub struct FusedTimes(());

impl FusedTimes {
    /// Plants the fault on this thread. A factor of 1 changes no value.
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

/// The faults that are planted on a thread. On CUDA, the backward pass recomputes a checkpointed
/// module on another thread. The faults must apply there, too.
#[derive(Debug, Clone, Default)]
pub(super) struct Planted {
    factor: Option<f64>,
    layer: Option<String>,
}

impl Planted {
    /// Returns the faults that are planted on this thread.
    pub(super) fn here() -> Self {
        Self { factor: FACTOR.get(), layer: LAYER.with_borrow(Clone::clone) }
    }

    /// Calls `run` with these faults planted on this thread, and restores the earlier state of the
    /// thread afterwards.
    pub(super) fn during<T>(&self, run: impl FnOnce() -> T) -> T {
        let outer = Self::here();
        self.clone().plant();
        let result = run();
        outer.plant();
        result
    }

    fn plant(self) {
        FACTOR.set(self.factor);
        LAYER.set(self.layer);
    }
}

/// Returns whether groups of layers count as fused on a CPU, because a fault in fused layers is
/// planted.
pub(super) fn fuses_on_host() -> bool {
    FACTOR.get().is_some()
}

/// Returns whether a fault is planted on this thread.
pub(super) fn is_planted() -> bool {
    fuses_on_host() || LAYER.with_borrow(Option::is_some)
}

/// Applies the planted fault to the output of fused layers.
pub(super) fn of_group(output: Option<Tensor>) -> Result<Option<Tensor>> {
    match (output, FACTOR.get()) {
        (Some(output), Some(factor)) if factor != 1.0 => Ok(Some(output.f_mul_scalar(factor)?)),
        (output, _) => Ok(output),
    }
}

/// A guard. While it exists, the 16-bit outputs of the module at a path lose their last two binary
/// digits, as if the module added up in 16 bits. Only models on this thread are affected. Outputs
/// in wider dtypes and gradients do not change.
#[doc(hidden)]
#[derive(Debug)]
pub struct LayerLosesDigits(());

impl LayerLosesDigits {
    /// Plants the fault in the module at `path`.
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

/// Applies the planted fault to the output of the module at `path`.
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
        // The difference is added to `tensor`, and not returned as a new tensor, so that the
        // gradient of `tensor` is kept. Difference and sum are exact.
        let lost = bits.f_view_dtype(tensor.kind())?.f_sub(&exact)?;
        Ok(tensor.f_add(&lost)?)
    })
}
