//! Which kernels layers and losses run by.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};

use crate::{ffi, named::named};

/// Which kernels layers and losses run by on CUDA. On a CPU both choices give the same numbers, because this
/// library has no kernels for one.
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
    /// This library's where there are some. They fuse layers and round less often than PyTorch: under autocast the
    /// gradients of linear layers' weights stay in f32, where PyTorch rounds them to 16 bits, so that a gradient
    /// beyond f16's range stays finite.
    #[default]
    Own,
    /// libtorch's operators, one for each layer, activation and loss, as PyTorch runs them: the same roundings and
    /// overflows. Steps take longer. It shows whether two runs differ by rounding alone. Optimizers and the loss
    /// scaler keep their kernels, and dropout drops what PyTorch's drops.
    Libtorch,
}

named!(Kernels, "kernels", {
    Own => "own",
    Libtorch => "libtorch",
});

impl Kernels {
    /// Lets layers and losses that this thread runs take these kernels until the guard is dropped. Backward passes
    /// follow their forward pass, and so do the recomputations of checkpoints. A [`Trainer`](crate::Trainer) does
    /// this itself.
    pub fn enter(self) -> KernelsGuard {
        let outer = ffi::own_kernels();
        ffi::set_own_kernels(self == Self::Own);
        KernelsGuard { outer, _thread: PhantomData }
    }
}

/// Restores the kernels that were taken before. Drop guards in reverse order. Not `Send`, because the choice
/// belongs to the thread.
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
