//! The tensors of a batch's fields, while they are filled.

use tch::Tensor;

use super::cells::{Content, Rows};
use crate::{Error, Result, ffi::HostValues};

/// The tensors of all fields, with all rows. The tensors are filled in parts of consecutive rows.
/// Different threads may fill different parts.
pub(super) struct Fields<'c>(Vec<(Content<'c>, Values)>);

enum Values {
    F32 { values: HostValues<f32>, width: usize },
    I64(HostValues<i64>),
}

impl<'c> Fields<'c> {
    /// Creates the tensors for `rows` rows. Their values are written later.
    pub(super) fn new(
        contents: impl IntoIterator<Item = Content<'c>>,
        rows: usize,
    ) -> Result<Self> {
        let fields = contents.into_iter().map(|content| {
            let values = match content {
                Content::Numbers { columns: [], .. } | Content::Missing { columns: [] } => {
                    return Err(Error::config("a field of numbers needs at least one column"));
                }
                Content::Numbers { columns, .. } | Content::Missing { columns } => {
                    let (width, size) = (columns.len(), [rows as i64, columns.len() as i64]);
                    Values::F32 { values: HostValues::zeros(&size)?, width }
                }
                Content::Integers { .. } | Content::Ids { .. } => {
                    Values::I64(HostValues::zeros(&[rows as i64])?)
                }
            };
            Ok((content, values))
        });
        fields.collect::<Result<_>>().map(Self)
    }

    /// Returns the part that consists of all rows.
    pub(super) fn part(&mut self) -> Part<'_, 'c> {
        let fields = self.0.iter_mut().map(|(content, values)| {
            let places = match values {
                Values::F32 { values, width } => {
                    Places::F32 { values: values.values(), width: *width }
                }
                Values::I64(values) => Places::I64(values.values()),
            };
            (*content, places)
        });
        Part(fields.collect())
    }

    /// Returns the tensors, in the order of the fields.
    pub(super) fn tensors(self) -> impl Iterator<Item = Tensor> {
        self.0.into_iter().map(|(_, values)| match values {
            Values::F32 { values, .. } => values.into_tensor(),
            Values::I64(values) => values.into_tensor(),
        })
    }
}

/// The elements of consecutive rows in the tensors of all fields.
pub(super) struct Part<'t, 'c>(Vec<(Content<'c>, Places<'t>)>);

/// The elements of consecutive rows in one tensor.
pub(super) enum Places<'t> {
    F32 { values: &'t mut [f32], width: usize },
    I64(&'t mut [i64]),
}

impl<'t, 'c> Part<'t, 'c> {
    /// Splits off the elements of the first `rows` rows. Returns `None` if there are fewer rows.
    pub(super) fn first(&mut self, rows: usize) -> Option<Self> {
        let fields = self.0.iter_mut().map(|(content, places)| {
            let places = match places {
                Places::F32 { values, width } => {
                    Places::F32 { values: values.split_off_mut(..rows * *width)?, width: *width }
                }
                Places::I64(values) => Places::I64(values.split_off_mut(..rows)?),
            };
            Some((*content, places))
        });
        fields.collect::<Option<_>>().map(Self)
    }

    /// Returns the number of rows.
    #[cfg(feature = "parquet")]
    pub(super) fn len(&self) -> usize {
        self.0.first().map_or(0, |(_, places)| match places {
            Places::F32 { values, width } => values.len() / width,
            Places::I64(values) => values.len(),
        })
    }

    /// Reads all fields of `rows` and writes them to this part. `rows` must have as many rows as
    /// the part.
    pub(super) fn read(self, rows: &mut impl Rows<'c>) -> Result<()> {
        self.0.into_iter().try_for_each(|(content, places)| content.read(rows, places))
    }
}
