use std::sync::{Mutex, PoisonError};

use tch::Tensor;

/// A tensor that any number of threads read, for sets that keep theirs in memory: a
/// [`MapDataset`](super::MapDataset) is shared by its workers, a `Tensor` alone is not shared by threads.
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
    /// Takes the tensor over. Do not change it in place afterwards.
    pub fn new(tensor: Tensor) -> Self {
        Self(Mutex::new(tensor))
    }

    /// Returns a handle of the same memory.
    pub fn get(&self) -> Tensor {
        // Nothing is changed under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).shallow_clone()
    }
}

impl From<Tensor> for SharedTensor {
    fn from(tensor: Tensor) -> Self {
        Self::new(tensor)
    }
}
