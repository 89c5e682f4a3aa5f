use tch::{Kind, Tensor};

use crate::{
    Error, Result,
    memory::tensor_bytes,
    precision::{Policy, Precision, is_floating},
};

/// Some examples: inputs and their targets, equal in dimension 0.
#[derive(Debug)]
pub struct Batch {
    /// `[N, …]`.
    pub input: Tensor,
    /// `[N, …]`.
    pub target: Tensor,
}

impl Batch {
    /// Pairs inputs with targets.
    ///
    /// # Errors
    /// When their numbers differ.
    pub fn new(input: Tensor, target: Tensor) -> Result<Self> {
        let count = |tensor: &Tensor| tensor.size().first().copied().unwrap_or(0);
        let (inputs, targets) = (count(&input), count(&target));
        if inputs != targets {
            return Err(Error::config(format!("{inputs} inputs, but {targets} targets")));
        }
        Ok(Self { input, target })
    }

    /// Number of examples.
    #[expect(clippy::len_without_is_empty, reason = "a batch has examples")]
    pub fn len(&self) -> i64 {
        self.input.size().first().copied().unwrap_or(0)
    }

    /// The examples on the policy's device, floating inputs in its dtype.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn place(&self, policy: Policy) -> Result<Self> {
        let place = |tensor: &Tensor| -> Result<Tensor> {
            let kind = placed_kind(tensor, policy.precision);
            Ok(tensor.f_to_device_(policy.device, kind, false, false)?)
        };
        Ok(Self { input: place(&self.input)?, target: place(&self.target)? })
    }

    /// Bytes that [`Batch::place`] takes on another device.
    pub(super) fn placed_bytes(&self, precision: Precision) -> u64 {
        let bytes = |tensor: &Tensor| {
            tensor.numel() as u64 * placed_kind(tensor, precision).elt_size_in_bytes() as u64
        };
        bytes(&self.input) + bytes(&self.target)
    }

    /// Bytes of its tensors.
    pub(crate) fn bytes(&self) -> u64 {
        tensor_bytes(&self.input) + tensor_bytes(&self.target)
    }

    /// Bytes of its tensors that lie elsewhere than those of the other, if there is one.
    pub(super) fn bytes_beside(&self, other: Option<&Self>) -> u64 {
        let Some(other) = other else { return self.bytes() };
        let pairs = [(&self.input, &other.input), (&self.target, &other.target)];
        let beside = pairs.into_iter().filter(|(own, other)| own.data_ptr() != other.data_ptr());
        beside.map(|(own, _)| tensor_bytes(own)).sum()
    }

    /// The examples at these places, given as int64 on the batch's device.
    pub(super) fn select(&self, index: &Tensor) -> Result<Self> {
        let (input, target) =
            (self.input.f_index_select(0, index)?, self.target.f_index_select(0, index)?);
        Ok(Self { input, target })
    }

    /// `length` examples from `start` on, in the same memory.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Self> {
        let (input, target) =
            (self.input.f_narrow(0, start, length)?, self.target.f_narrow(0, start, length)?);
        Ok(Self { input, target })
    }

    /// A copy of its own.
    pub(crate) fn copied(&self) -> Result<Self> {
        Ok(Self { input: self.input.f_detach_copy()?, target: self.target.f_detach_copy()? })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { input: self.input.shallow_clone(), target: self.target.shallow_clone() }
    }
}

fn placed_kind(tensor: &Tensor, precision: Precision) -> Kind {
    match tensor.kind() {
        kind if is_floating(kind) => precision.storage(),
        kind => kind,
    }
}
