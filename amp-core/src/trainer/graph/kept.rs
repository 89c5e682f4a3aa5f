//! What a step changes besides parameters and optimizers, as it was before each step in flight.

use tch::Tensor;

use crate::{Result, ffi, precision::by_dtype};

/// Tensors, and room for their values before each of some steps.
pub(super) struct Kept {
    /// By dtype, since one kernel copies one dtype.
    groups: Vec<Group>,
}

struct Group {
    live: Vec<Tensor>,
    slots: Vec<Vec<Tensor>>,
}

impl Kept {
    pub(super) fn new(tensors: &[Tensor], slots: usize) -> Result<Self> {
        let mut groups = Vec::new();
        by_dtype(tensors, |_, live| {
            let room = |_| live.iter().map(|tensor| Ok(tensor.f_empty_like()?)).collect();
            let slots = (0..slots).map(room).collect::<Result<_>>()?;
            let live = live.iter().map(Tensor::shallow_clone).collect();
            groups.push(Group { live, slots });
            Ok(Vec::new())
        })?;
        Ok(Self { groups })
    }

    /// Keeps the values of now.
    pub(super) fn keep(&self, slot: usize) -> Result<()> {
        let mut groups = self.groups.iter();
        groups.try_for_each(|group| ffi::foreach_copy(&group.slots[slot], &group.live))
    }

    /// Brings kept values back.
    pub(super) fn restore(&self, slot: usize) -> Result<()> {
        let mut groups = self.groups.iter();
        groups.try_for_each(|group| ffi::foreach_copy(&group.live, &group.slots[slot]))
    }
}
