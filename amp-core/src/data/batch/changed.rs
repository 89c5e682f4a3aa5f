//! Functions that change a batch, or make a batch from other batches.

use std::cell::OnceCell;

use tch::{Kind, Tensor};

use super::{AnyBatch, FieldRole};
use crate::{Error, Result};

impl AnyBatch {
    /// Replaces the tensor of a field. The new tensor must have as many examples as the batch, and
    /// a dtype that fits the field's role.
    ///
    /// # Errors
    /// When the batch has no field of this name, or the dtype or the number of examples of the
    /// tensor does not fit.
    pub fn replace(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let _ = self.required(name)?;
        let (count, of) = (self.len(), self.of());
        for field in self.fields.iter_mut().filter(|field| field.name == name) {
            // A `push` to an empty batch checks that the tensor fits the role.
            Self::new(of).push(field.name.clone(), tensor, field.role)?;
            let given = tensor.size().first().copied().unwrap_or(0);
            if field.role != FieldRole::Shared && given != count {
                return Err(Error::config(format!(
                    "the batch `{of}` has {count} examples, but the tensor for `{name}` has {given}"
                )));
            }
            self.common &= field.role != FieldRole::Shared;
            if field.role == FieldRole::Weights {
                self.weight = OnceCell::new();
            }
            if tensor.kind() == Kind::Int64 {
                // The new tensor may contain -100, the class that losses ignore.
                self.complete = false;
            }
            field.tensor = tensor.shallow_clone();
        }
        Ok(())
    }
}

#[cfg(feature = "parquet")]
impl AnyBatch {
    /// Concatenates batches along the examples. The batches must have the same fields.
    ///
    /// # Errors
    /// When `batches` is empty, or the fields of two batches differ.
    pub(in crate::data) fn joined(batches: &[Self]) -> Result<Self> {
        let Some(first) = batches.first() else {
            return Err(Error::config("the batch would be empty, because no row was read"));
        };
        let mut joined = Self::new(first.of());
        for (name, tensor, role) in first.fields() {
            let tensors = batches.iter().map(|batch| batch.required(name));
            let tensor = match role {
                FieldRole::Shared => tensor.shallow_clone(),
                _ => Tensor::f_cat(&tensors.collect::<Result<Vec<_>>>()?, 0)?,
            };
            joined.push(name.to_owned(), &tensor, role)?;
        }
        Ok(joined)
    }
}
