//! Values of tensors as they were before some steps.

use tch::Tensor;

use crate::{Result, ffi, memory::tensor_bytes};

/// Tensors, and room for their values before each of some steps.
pub(super) struct Kept {
    live: Vec<Tensor>,
    slots: Vec<Vec<Tensor>>,
}

impl Kept {
    pub(super) fn new(live: Vec<Tensor>, slots: usize) -> Result<Self> {
        let room = |_| live.iter().map(|tensor| Ok(tensor.f_empty_like()?)).collect();
        Ok(Self { slots: (0..slots).map(room).collect::<Result<_>>()?, live })
    }

    /// What has to be copied to keep the values of now: to where, and from where.
    pub(super) fn copies(&self, slot: usize) -> impl Iterator<Item = [&Tensor; 2]> {
        self.slots[slot].iter().zip(&self.live).map(|(kept, live)| [kept, live])
    }

    /// Keeps the values of now.
    pub(super) fn keep(&self, slot: usize) -> Result<()> {
        let pairs: Vec<_> = self.copies(slot).collect();
        if pairs.is_empty() { Ok(()) } else { ffi::copy_each(&pairs) }
    }

    /// Bytes of what is kept.
    pub(super) fn bytes(&self) -> u64 {
        self.slots.iter().flatten().map(tensor_bytes).sum()
    }

    /// Brings kept values back.
    pub(super) fn restore(&self, slot: usize) -> Result<()> {
        let pairs: Vec<_> = self.copies(slot).map(|[kept, live]| [live, kept]).collect();
        if pairs.is_empty() { Ok(()) } else { ffi::copy_each(&pairs) }
    }
}
