//! A batch of parameters that one call of a kernel updates.

use tch::{Kind, Tensor};

/// The properties that all parameters of one kernel call must have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) group: usize,
    /// The index of the list of slots (state tensors) that all these parameters have.
    pub(super) layout: usize,
    pub(super) kind: Kind,
    pub(super) grad_kind: Kind,
    /// Whether this is the first update of these parameters.
    pub(super) first: bool,
}

/// The parameters that one kernel call updates, with their gradients.
pub(super) struct Batch<'g> {
    pub(super) key: Key,
    /// The indices of the parameters in the optimizer's list.
    pub(super) places: Vec<usize>,
    pub(super) grads: Vec<&'g Tensor>,
}

pub(super) fn each_of(tensors: &[Tensor]) -> Vec<&Tensor> {
    tensors.iter().collect()
}
