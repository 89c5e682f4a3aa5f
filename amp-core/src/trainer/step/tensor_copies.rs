//! Copies of the values of tensors, with which a step can be undone.

use tch::Tensor;

use crate::{Result, ffi, memory::tensor_bytes};

/// Tensors, and memory for copies of their values. Each slot has room for one copy of every tensor.
pub(super) struct Kept {
    live: Vec<Tensor>,
    slots: Vec<Vec<Tensor>>,
}

impl Kept {
    pub(super) fn new(live: Vec<Tensor>, slots: usize) -> Result<Self> {
        let room = |_| live.iter().map(|tensor| Ok(tensor.f_empty_like()?)).collect();
        Ok(Self { slots: (0..slots).map(room).collect::<Result<_>>()?, live })
    }

    /// Returns the tensors of which copies are made.
    pub(super) fn live(&self) -> impl Iterator<Item = &Tensor> {
        self.live.iter()
    }

    /// Returns a pair of target and source for each tensor: copying the source to the target saves
    /// the tensor's current value in `slot`.
    pub(super) fn copies(&self, slot: usize) -> impl Iterator<Item = [&Tensor; 2]> {
        self.slots[slot].iter().zip(&self.live).map(|(kept, live)| [kept, live])
    }

    /// Saves, in `slot`, the current values of all tensors.
    pub(super) fn keep(&self, slot: usize) -> Result<()> {
        let pairs: Vec<_> = self.copies(slot).collect();
        if pairs.is_empty() { Ok(()) } else { ffi::copy_each(&pairs) }
    }

    /// Returns the number of bytes of the copies.
    pub(super) fn bytes(&self) -> u64 {
        self.slots.iter().flatten().map(tensor_bytes).sum()
    }

    /// Restores the values that were saved in `slot`.
    pub(super) fn restore(&self, slot: usize) -> Result<()> {
        let pairs: Vec<_> = self.copies(slot).map(|[kept, live]| [live, kept]).collect();
        if pairs.is_empty() { Ok(()) } else { ffi::copy_each(&pairs) }
    }
}
