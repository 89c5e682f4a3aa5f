use std::sync::{Mutex, PoisonError};

use tch::Tensor;

/// A tensor that several threads can read at once. Use it in a [`MapDataset`](super::MapDataset)
/// that stores tensors in memory: the worker threads share the set, but Rust does not let threads
/// share a plain `Tensor`.
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
    /// Takes ownership of the tensor. Do not change it in place afterwards, because other threads
    /// may be reading it.
    pub fn new(tensor: Tensor) -> Self {
        Self(Mutex::new(tensor))
    }

    /// Returns a handle of the tensor. The handle shares the tensor's memory.
    pub fn get(&self) -> Tensor {
        // A lock is poisoned if a thread panicked while it held the lock. The lock is held only to
        // copy the handle, so the tensor cannot have been changed halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shallow_clone()
    }
}

impl From<Tensor> for SharedTensor {
    fn from(tensor: Tensor) -> Self {
        Self::new(tensor)
    }
}
