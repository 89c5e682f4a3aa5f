//! Tensors in host memory that Rust code fills.

use std::marker::PhantomData;

use tch::{Device, Tensor, kind::Element};

use crate::Result;

/// A new tensor in host memory whose values Rust code writes before anything else uses the tensor.
#[derive(Debug)]
pub(crate) struct HostValues<T> {
    /// The tensor is contiguous. No other tensor shares its memory until
    /// [`into_tensor`](Self::into_tensor) returns it.
    tensor: Tensor,
    kind: PhantomData<T>,
}

impl<T: Element + Copy> HostValues<T> {
    /// Creates a tensor of zeros.
    pub(crate) fn zeros(size: &[i64]) -> Result<Self> {
        let tensor = Tensor::f_zeros(size, (T::KIND, Device::Cpu))?;
        Ok(Self { tensor, kind: PhantomData })
    }

    /// Returns the values, for reading and writing.
    pub(crate) fn values(&mut self) -> &mut [T] {
        match self.tensor.numel() {
            0 => &mut [],
            // SAFETY: the tensor is contiguous, and `zeros` has written `count` values of this
            // dtype. The tensor shares its memory with no other tensor, and lives as long as the
            // slice, because `self` is borrowed.
            count => unsafe {
                std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast::<T>(), count)
            },
        }
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}
