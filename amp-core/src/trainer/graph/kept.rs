//! What a step changes besides parameters and optimizers, as it was before each step in flight.

use tch::Tensor;

use crate::{Result, ffi};

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

    /// Brings kept values back.
    pub(super) fn restore(&self, slot: usize) -> Result<()> {
        let pairs: Vec<_> = self.copies(slot).map(|[kept, live]| [live, kept]).collect();
        ffi::copy_each(&pairs)
    }
}
