use std::sync::{Mutex, PoisonError};

use tch::Tensor;

/// A tensor that any number of threads can read. Use it for sets that keep tensors in memory:
/// workers share a [`MapDataset`](super::MapDataset), but Rust does not let threads share a plain
/// `Tensor`.
///
/// ```
/// use amp_core::{data::SharedTensor, tch::Tensor};
///
/// let rows = SharedTensor::new(Tensor::from_slice(&[1, 2, 3]));
/// assert_eq!(rows.get().size(), [3]);
/// ```
#[derive(Debug)]
pub struct SharedTensor(Mutex<Tensor>);

impl SharedTensor {
    /// Takes ownership of the tensor. Do not change it in place afterwards.
    pub fn new(tensor: Tensor) -> Self {
        Self(Mutex::new(tensor))
    }

    /// Returns a handle of the same tensor.
    pub fn get(&self) -> Tensor {
        // No code changes the tensor while it holds the lock, so a panic cannot leave it
        // half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shallow_clone()
    }
}

impl From<Tensor> for SharedTensor {
    fn from(tensor: Tensor) -> Self {
        Self::new(tensor)
    }
}
