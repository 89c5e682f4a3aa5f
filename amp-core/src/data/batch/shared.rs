//! Finds shared tensors that may contain indices of examples, such as the edges of a graph.

use tch::Kind;

use super::{AnyBatch, FieldRole};
use crate::Result;

impl AnyBatch {
    /// Returns the name and the largest value of the first shared int64 tensor that may contain
    /// indices of examples. `examples` is the number of examples. A tensor may contain indices if
    /// all its values are valid indices of examples, and if it has at least as many values as there
    /// are examples. The list of a graph's edges usually meets both conditions.
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
