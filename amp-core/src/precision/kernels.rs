//! Selects the kernels of layers and losses.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::{ffi, named::named};

/// Which kernels layers and losses use on CUDA. On a CPU both choices give the same results,
/// because this library has no CPU kernels for layers and losses.
///
/// ```
/// use amp_core::{precision::Kernels, prelude::*};
///
/// let config = TrainerConfig::new(Precision::F16Mixed, Device::Cpu)
///     .with(|config| config.numerics.kernels = Kernels::Libtorch);
/// assert_eq!(config.numerics.kernels.name(), "libtorch");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kernels {
    /// The kernels of this library where it has one, and otherwise libtorch's. This library's
    /// kernels fuse layers and round less often than PyTorch. Under autocast, the gradients of
    /// linear layers' weights stay in f32, whereas PyTorch rounds them to 16 bits. A gradient
    /// beyond f16's range therefore stays finite.
    #[default]
    Own,
    /// The operators of libtorch, one for each layer, activation and loss, with the roundings and
    /// overflows of PyTorch. Steps take longer than with `Own`. Use this choice to find out whether
    /// results differ from PyTorch's only because of rounding. Optimizers and the loss scaler still
    /// use the kernels of this library. With the same seed, dropout sets the same elements to zero
    /// as in PyTorch.
    Libtorch,
}

named!(Kernels, "kernels", {
    Own => "own",
    Libtorch => "libtorch",
});

impl Kernels {
    /// Selects these kernels for the layers and losses on this thread until the guard is dropped. A
    /// backward pass and a recomputation of activations use the kernels of their forward pass. Call
    /// this only outside of a [`Trainer`](crate::Trainer), which itself selects the kernels of its
    /// configuration.
    pub fn enter(self) -> KernelsGuard {
        let outer = ffi::own_kernels();
        ffi::set_own_kernels(self == Self::Own);
        KernelsGuard { outer, _thread: PhantomData }
    }
}

/// A guard that restores the previous choice of kernels when it is dropped. Drop nested guards in
/// reverse order. The guard is not `Send`, because the choice belongs to the thread.
#[derive(Debug)]
#[must_use = "the choice ends when the guard is dropped"]
pub struct KernelsGuard {
    outer: bool,
    _thread: PhantomData<*const ()>,
}

impl Drop for KernelsGuard {
    fn drop(&mut self) {
        ffi::set_own_kernels(self.outer);
    }
}
