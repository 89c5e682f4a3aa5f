//! Finds shared tensors that may number the examples of the set.

use tch::Kind;

use super::{AnyBatch, FieldRole};
use crate::Result;

impl AnyBatch {
    /// Returns the first shared tensor of int64 whose numbers may be those of `examples` examples:
    /// its name and its largest number. There must be at least as many numbers as examples, as in a
    /// list of edges.
    pub(in crate::data) fn numbering(&self, examples: i64) -> Result<Option<(String, i64)>> {
        let shared = self.fields.iter().filter(|field| field.role == FieldRole::Shared);
        for field in shared.filter(|field| field.tensor.kind() == Kind::Int64) {
            if field.tensor.numel() < examples.max(2).unsigned_abs() as usize {
                continue;
            }
            let least = field.tensor.f_min()?.f_int64_value(&[])?;
            let most = field.tensor.f_max()?.f_int64_value(&[])?;
            if least >= 0 && (1..examples).contains(&most) {
                return Ok(Some((field.name.to_string(), most)));
            }
        }
        Ok(None)
    }
}
