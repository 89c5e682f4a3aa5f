//! Parameters that one kernel call steps.

use tch::{Kind, Tensor};

/// What the parameters of one kernel call have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) group: usize,
    /// What is kept for them.
    pub(super) layout: usize,
    pub(super) kind: Kind,
    pub(super) grad_kind: Kind,
    /// Whether it is the first step.
    pub(super) first: bool,
}

/// What one kernel call takes.
pub(super) struct Batch<'g> {
    pub(super) key: Key,
    /// Places in the optimizer's list.
    pub(super) places: Vec<usize>,
    pub(super) grads: Vec<&'g Tensor>,
}

pub(super) fn each_of(tensors: &[Tensor]) -> Vec<&Tensor> {
    tensors.iter().collect()
}
