//! Deliberate faults in the outputs of fused layers and of single layers. No public API can cause
//! these faults. The self-test of the gate (`cargo amp selftest`) plants them, to show which check
//! reports them.

use std::cell::{Cell, RefCell};

use tch::{Kind, Tensor};

use crate::{Result, precision::Tensors};

thread_local! {
    static FACTOR: Cell<Option<f64>> = const { Cell::new(None) };
    static LAYER: RefCell<Option<(String, LayerFault)>> = const { RefCell::new(None) };
}

/// A guard. While it exists, the output of each group of fused layers on this thread is multiplied
/// by a factor. A CPU has no kernels for fused layers. There, the layers that a GPU would fuse run
/// one by one, and the output of the last of them is multiplied.
#[doc(hidden)]
#[derive(Debug)]
pub struct FusedTimes(());

impl FusedTimes {
    /// Plants the fault on this thread. With a factor of 1, no value changes.
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
    layer: Option<(String, LayerFault)>,
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

/// Returns whether a CPU treats as fused the layers that a GPU would fuse, because a fault in fused
/// layers is planted.
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

/// How a faulty layer changes its 16-bit outputs. Outputs in other dtypes do not change.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerFault {
    /// The two lowest bits of each output become zero, as if sums were accumulated in 16 bits.
    /// Gradients do not change.
    LosesDigits,
    /// Subnormal outputs (with an absolute value below the smallest normal number) become zero, and
    /// so do their gradients.
    FlushesSmall,
}

/// A guard. While it exists, the module at the given path has a fault in every model that runs on
/// this thread.
#[doc(hidden)]
#[derive(Debug)]
pub struct FaultyLayer(());

impl FaultyLayer {
    /// Plants the fault in the module at `path`.
    pub fn new(path: impl Into<String>, fault: LayerFault) -> Self {
        LAYER.set(Some((path.into(), fault)));
        Self(())
    }
}

impl Drop for FaultyLayer {
    fn drop(&mut self) {
        LAYER.set(None);
    }
}

/// Applies the planted fault to the output of the module at `path`.
pub(super) fn of_layer<T: Tensors>(path: &str, output: T) -> Result<T> {
    let of = |(own, fault): &(String, LayerFault)| (own == path).then_some(*fault);
    let Some(fault) = LAYER.with_borrow(|layer| layer.as_ref().and_then(of)) else {
        return Ok(output);
    };
    output.each(&mut |tensor| {
        let smallest = match tensor.kind() {
            Kind::Half => 2.0_f64.powi(-14),
            Kind::BFloat16 => 2.0_f64.powi(-126),
            _ => return Ok(tensor.shallow_clone()),
        };
        let exact = tensor.f_detach()?.f_contiguous()?;
        match fault {
            LayerFault::LosesDigits => {
                let bits = exact.f_view_dtype(Kind::Int16)?.f_bitwise_and(-4)?;
                // The difference and the sum below are exact. `lost` is detached, so the gradient
                // is unchanged.
                let lost = bits.f_view_dtype(tensor.kind())?.f_sub(&exact)?;
                Ok(tensor.f_add(&lost)?)
            }
            LayerFault::FlushesSmall => {
                let small = exact.f_abs()?.f_lt(smallest)?;
                Ok(tensor.f_masked_fill(&small, 0.0)?)
            }
        }
    })
}
