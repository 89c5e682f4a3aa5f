use std::borrow::Cow;

use tch::Tensor;

use super::{AnyBatch, BatchField, BatchType, FieldRole, field_name};
use crate::{Error, Result, precision::Policy};

/// A batch of inputs and their targets, with the same number of examples (dimension 0).
#[derive(Debug)]
pub struct Batch {
    /// The inputs, of shape `[N, …]` for N examples.
    pub input: Tensor,
    /// The targets, of shape `[N, …]`.
    pub target: Tensor,
}

impl Batch {
    /// Makes a batch of inputs and their targets.
    ///
    /// # Errors
    /// When the number of inputs differs from the number of targets.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::prelude::*;
    ///
    /// let input = Tensor::f_zeros([32, 64], (Kind::Float, Device::Cpu))?;
    /// let target = Tensor::f_zeros([32], (Kind::Int64, Device::Cpu))?;
    /// assert_eq!(Batch::new(input, target)?.len(), 32);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn new(input: Tensor, target: Tensor) -> Result<Self> {
        let count = |tensor: &Tensor| tensor.size().first().copied().unwrap_or(0);
        let (inputs, targets) = (count(&input), count(&target));
        if inputs != targets {
            return Err(Error::config(format!(
                "the batch has {inputs} inputs, but {targets} targets"
            )));
        }
        Ok(Self { input, target })
    }

    /// Returns the number of examples.
    #[expect(clippy::len_without_is_empty, reason = "a batch has examples")]
    pub fn len(&self) -> i64 {
        self.input.size().first().copied().unwrap_or(0)
    }

    /// Returns a copy of the batch on the policy's device, with floating-point tensors cast to the
    /// policy's dtype.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn place(&self, policy: Policy) -> Result<Self> {
        Self::from_any(&self.to_any()?.place(policy)?)
    }

    /// Returns the `length` examples from `start` on. The result shares memory with this batch.
    ///
    /// # Errors
    /// When the batch has fewer than `start + length` examples.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Self> {
        let (input, target) =
            (self.input.f_narrow(0, start, length)?, self.target.f_narrow(0, start, length)?);
        Ok(Self { input, target })
    }
}

impl BatchType for Batch {
    fn to_any(&self) -> Result<AnyBatch> {
        let mut batch = AnyBatch::new("Batch");
        batch.push("input", &self.input, FieldRole::Value)?;
        batch.push("target", &self.target, FieldRole::Value)?;
        Ok(batch)
    }

    fn from_any(batch: &AnyBatch) -> Result<Self> {
        let field = |name| Ok::<_, Error>(batch.required(name)?.shallow_clone());
        Ok(Self { input: field("input")?, target: field("target")? })
    }
}

impl BatchField for Batch {
    type Ref<'a> = &'a Self;

    fn borrow(&self) -> &Self {
        self
    }

    fn put(&self, name: Cow<'static, str>, role: FieldRole, batch: &mut AnyBatch) -> Result<()> {
        batch.push(field_name(&name, "input"), &self.input, role)?;
        batch.push(field_name(&name, "target"), &self.target, role)
    }

    fn take(name: &str, batch: &AnyBatch) -> Result<Self> {
        let field = |of| Ok::<_, Error>(batch.required(&field_name(name, of))?.shallow_clone());
        Ok(Self { input: field("input")?, target: field("target")? })
    }
}
