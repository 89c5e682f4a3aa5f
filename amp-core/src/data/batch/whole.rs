//! Finds whole numbers that are stored as floating-point values and that a 16-bit dtype would
//! round. Such numbers may be ids, which must not be rounded.

use tch::{Kind, Tensor};

use super::AnyBatch;
use crate::{Result, precision::dtype_name};

/// A column of whole numbers that a dtype cannot represent exactly.
#[derive(Debug, PartialEq)]
pub(crate) struct Changed {
    field: String,
    /// The index of the column in the last dimension. `None` if the field has only one number per
    /// example.
    column: Option<i64>,
    before: f64,
    after: f64,
    dtype: &'static str,
}

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { field, column, before, after, dtype } = self;
        let column = column.map_or(String::new(), |at| format!(" in column {at}"));
        write!(
            f,
            "`{field}` holds whole numbers{column}, and {dtype} rounds {before} to {after}: if they are ids, \
             give them a field of their own with #[batch(ids)], which keeps its dtype"
        )
    }
}

impl AnyBatch {
    /// Returns the first column that contains only whole numbers, some of which are changed by a
    /// cast to the dtype `kind`.
    pub(crate) fn changed_whole_numbers(&self, kind: Kind) -> Result<Option<Changed>> {
        for (name, tensor) in self.floating_values() {
            let rows = match tensor.dim() {
                0 => continue,
                1 => tensor.f_unsqueeze(1)?,
                _ => tensor.f_reshape([-1, tensor.size().last().copied().unwrap_or(1)])?,
            };
            let columns = [0_i64].as_slice();
            let is_whole = rows.f_frac()?.f_eq(0.0)?;
            let whole = is_whole.f_all_dims(columns, false)?;
            let changed = rows.f_to_kind(kind)?.f_to_kind(rows.kind())?.f_ne_tensor(&rows)?;
            let found = changed.f_any_dims(columns, false)?.f_logical_and(&whole)?;
            let places = Vec::<i64>::try_from(found.f_nonzero()?.f_reshape([-1])?)?;
            let Some(&column) = places.first() else { continue };
            let row = changed.f_select(1, column)?.f_to_kind(Kind::Uint8)?.f_argmax(0, false)?;
            let value = rows.f_select(1, column)?.f_get(row.f_int64_value(&[])?)?;
            let after = value.f_to_kind(kind)?.f_double_value(&[])?;
            return Ok(Some(Changed {
                field: name.to_owned(),
                column: (tensor.dim() > 1).then_some(column),
                before: value.f_double_value(&[])?,
                after,
                dtype: dtype_name(kind),
            }));
        }
        Ok(None)
    }

    /// Returns the f32 and f64 tensors of the batch's values. These are the tensors that are cast
    /// to the precision's dtype when the batch is moved to the device.
    fn floating_values(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.values().filter(|(_, tensor)| matches!(tensor.kind(), Kind::Float | Kind::Double))
    }
}
