//! Copies of tensors' values before some steps.

use tch::Tensor;

use crate::{Result, ffi, memory::tensor_bytes};

/// Tensors, and copies of their values before some steps.
pub(super) struct Kept {
    live: Vec<Tensor>,
    slots: Vec<Vec<Tensor>>,
}

impl Kept {
    pub(super) fn new(live: Vec<Tensor>, slots: usize) -> Result<Self> {
        let room = |_| live.iter().map(|tensor| Ok(tensor.f_empty_like()?)).collect();
        Ok(Self { slots: (0..slots).map(room).collect::<Result<_>>()?, live })
    }

    /// Returns the copies that save the current values, as pairs of target and source.
    pub(super) fn copies(&self, slot: usize) -> impl Iterator<Item = [&Tensor; 2]> {
        self.slots[slot].iter().zip(&self.live).map(|(kept, live)| [kept, live])
    }

    /// Saves the current values.
    pub(super) fn keep(&self, slot: usize) -> Result<()> {
        let pairs: Vec<_> = self.copies(slot).collect();
        if pairs.is_empty() { Ok(()) } else { ffi::copy_each(&pairs) }
    }

    /// Returns the number of bytes of the copies.
    pub(super) fn bytes(&self) -> u64 {
        self.slots.iter().flatten().map(tensor_bytes).sum()
    }

    /// Restores the copied values.
    pub(super) fn restore(&self, slot: usize) -> Result<()> {
        let pairs: Vec<_> = self.copies(slot).map(|[kept, live]| [live, kept]).collect();
        if pairs.is_empty() { Ok(()) } else { ffi::copy_each(&pairs) }
    }
}
