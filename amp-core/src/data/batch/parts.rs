//! Divides batches into parts.

use tch::Tensor;

use super::{AnyBatch, FieldRole};
use crate::{Error, Result};

impl AnyBatch {
    /// Returns whether the batch can be divided into batches of fewer examples. A batch with shared
    /// tensors ([`FieldRole::Shared`]) is divisible only if every part is known to need the same,
    /// complete shared tensors. This is unknown if the tensors may contain rows of all examples,
    /// for example the nodes of several graphs.
    pub fn is_divisible(&self) -> bool {
        self.common || self.shared_field().is_none()
    }

    /// Returns whether the tensor of this name belongs to the whole batch ([`FieldRole::Shared`])
    /// and therefore does not have one row per example.
    pub fn is_shared(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field.name == name && field.role == FieldRole::Shared)
    }

    /// Returns the tensors that have one row for each example.
    pub(crate) fn of_examples(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors().filter(|(name, _)| !self.is_shared(name)).map(|(_, tensor)| tensor)
    }

    /// Returns an error if the batch is not [divisible](Self::is_divisible). In the error, `why`
    /// says what divides the batch, and `remedy` says what the user can do instead.
    pub(crate) fn check_divisible(&self, why: &str, remedy: &str) -> Result<()> {
        match self.shared_field() {
            Some(name) if !self.common => Err(Error::config(format!(
                "{why}, which is impossible because the shared field `{name}` of the batch may hold rows of all examples: {remedy}"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the batch marked as [divisible](Self::is_divisible): every part needs the complete
    /// shared tensors.
    pub(in crate::data) fn with_common(mut self) -> Self {
        self.common = true;
        self
    }

    /// Splits the batch into at most `parts` batches with equal numbers of examples. The last of
    /// these batches may be smaller. Returns `None` if `parts` is 1, or if the batch is not
    /// [divisible](Self::is_divisible) and must therefore run as a whole.
    ///
    /// # Errors
    /// When libtorch refuses to narrow a tensor.
    pub(crate) fn split(&self, parts: i64) -> Result<Option<Vec<Self>>> {
        if parts == 1 || !self.is_divisible() {
            return Ok(None);
        }
        let length = self.len();
        let size = (length + parts - 1) / parts;
        let starts = (0..length).step_by(size.max(1) as usize);
        let parts = starts.map(|start| self.narrow(start, size.min(length - start)));
        parts.collect::<Result<_>>().map(Some)
    }

    /// Returns the name of the first shared tensor.
    fn shared_field(&self) -> Option<&str> {
        let mut shared = self.fields.iter().filter(|field| field.role == FieldRole::Shared);
        shared.next().map(|field| &*field.name)
    }
}
