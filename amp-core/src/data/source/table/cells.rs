//! The contents of a batch's fields, and how the fields are read from the columns of a table.

use super::{Categories, fields::Places};
use crate::{Error, Result};

/// Consecutive rows of a table, which are read column by column. `'c` is the lifetime of the
/// [`Columns`](super::Columns).
pub(super) trait Rows<'c> {
    /// Returns the file and line of a row for error messages, such as `people.csv, line 3`.
    fn place(&self, row: usize) -> String;

    /// Writes the numbers of a column, rounded to f32, to `to`. `missing` replaces missing values
    /// and NaN.
    fn floats(&mut self, column: &str, missing: Option<f32>, to: Column<'_>) -> Result<()>;

    /// Writes the whole numbers of a column to `to`. `missing` replaces missing values.
    fn integers(&mut self, column: &str, missing: Option<i64>, to: &mut [i64]) -> Result<()>;

    /// Writes the category ids of a column to `to`. `missing` replaces missing values.
    fn ids(
        &mut self,
        column: &str,
        known: &'c Categories,
        missing: Option<i64>,
        to: &mut [i64],
    ) -> Result<()>;

    /// Builds the error for a cell that cannot be converted. `why` is the reason.
    fn refused(&self, row: usize, column: &str, why: &str) -> Error {
        Error::config(format!("{}: `{column}` {why}", self.place(row)))
    }

    fn missing(&self, row: usize, column: &str) -> Error {
        self.refused(
            row,
            column,
            "is missing: fill in the cell, or declare a replacement for missing values",
        )
    }

    fn unknown(&self, row: usize, column: &str, name: &str) -> Error {
        let known = "a known category; Categories::with_unknown adds an id for all other names";
        self.refused(row, column, &format!("is `{name}`, which is not {known}"))
    }
}

/// One column of a field of shape `[N, width]`, to which one column of the table is written.
pub(super) struct Column<'t> {
    /// The field's elements in row-major order, including those of its other columns.
    values: &'t mut [f32],
    at: usize,
    width: usize,
}

impl Column<'_> {
    /// Writes one number for each row, from the first row on. Returns whether one of the numbers is
    /// NaN.
    #[cfg(feature = "parquet")]
    pub(super) fn write(&mut self, numbers: impl Iterator<Item = f32>) -> bool {
        let mut nan = false;
        let write = |(to, number): (&mut f32, f32)| {
            nan |= number.is_nan();
            *to = number;
        };
        match self.width {
            // Without `step_by`, the compiler vectorizes the loop.
            1 => self.values.iter_mut().zip(numbers).for_each(write),
            _ => self.iter_mut().zip(numbers).for_each(write),
        }
        nan
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut f32> {
        // Without rows, `values` is empty, and `at` may be larger than its length.
        let from_column = self.values.get_mut(self.at..).unwrap_or_default();
        from_column.iter_mut().step_by(self.width)
    }

    #[cfg(feature = "parquet")]
    pub(super) fn get(&self, row: usize) -> f32 {
        self.values[row * self.width + self.at]
    }

    #[cfg(feature = "parquet")]
    pub(super) fn set(&mut self, row: usize, number: f32) {
        self.values[row * self.width + self.at] = number;
    }
}

/// The content of a field, and the columns from which it is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'c> {
    /// f32 values of shape `[N, columns]`.
    Numbers { columns: &'c [String], missing: Option<f32> },
    /// 1 where a number is missing and 0 elsewhere, f32 of shape `[N, columns]`.
    Missing { columns: &'c [String] },
    /// int64 values of shape `[N]`.
    Integers { column: &'c str, missing: Option<i64> },
    /// Category ids, int64 of shape `[N]`.
    Ids { column: &'c str, known: &'c Categories, missing: Option<i64> },
}

impl<'c> Content<'c> {
    /// Reads the field from `rows` and writes it to `places`, the elements of the field for these
    /// rows.
    pub(super) fn read(self, rows: &mut impl Rows<'c>, places: Places<'_>) -> Result<()> {
        match (self, places) {
            (Self::Numbers { columns, missing }, Places::F32 { values, width }) => {
                for (at, column) in columns.iter().enumerate() {
                    rows.floats(column, missing, Column { values, at, width })?;
                }
                Ok(())
            }
            (Self::Missing { columns }, Places::F32 { values, width }) => {
                for (at, column) in columns.iter().enumerate() {
                    rows.floats(column, Some(f32::NAN), Column { values, at, width })?;
                }
                values.iter_mut().for_each(|own| *own = f32::from(u8::from(own.is_nan())));
                Ok(())
            }
            (Self::Integers { column, missing }, Places::I64(to)) => {
                rows.integers(column, missing, to)
            }
            (Self::Ids { column, known, missing }, Places::I64(to)) => {
                rows.ids(column, known, missing, to)
            }
            _ => unreachable!("the field's tensor has the dtype of its content"),
        }
    }
}
