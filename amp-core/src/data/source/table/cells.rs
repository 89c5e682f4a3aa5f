//! What the fields of a batch contain, and how they are read from the columns of a table.

use super::{Categories, fields::Places};
use crate::{Error, Result};

/// Consecutive rows of a table, which are read by column. `'c` is the lifetime of the declaration of
/// the columns.
pub(super) trait Rows<'c> {
    /// Returns the file and line of a row for error messages, such as `people.csv, line 3`.
    fn place(&self, row: usize) -> String;

    /// Writes the numbers in a column, rounded to f32. `missing` replaces missing values and NaN.
    fn floats(&mut self, column: &str, missing: Option<f32>, to: Column<'_>) -> Result<()>;

    /// Writes the whole numbers in a column. `missing` replaces missing values.
    fn integers(&mut self, column: &str, missing: Option<i64>, to: &mut [i64]) -> Result<()>;

    /// Writes the ids of the categories in a column. `missing` replaces missing values.
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
        self.refused(row, column, "is missing: fill the table, or declare a value for missing ones")
    }

    fn unknown(&self, row: usize, column: &str, name: &str) -> Error {
        let known = "a known category; Categories::with_unknown adds an id for all others";
        self.refused(row, column, &format!("is `{name}`, which is not {known}"))
    }
}

/// The places of a column's numbers in a field of numbers, which has several columns.
pub(super) struct Column<'t> {
    /// The numbers of all columns of the field, row by row.
    values: &'t mut [f32],
    at: usize,
    width: usize,
}

impl Column<'_> {
    /// Writes the numbers of the rows, from the first row on. Returns whether one of them is NaN.
    #[cfg(feature = "parquet")]
    pub(super) fn write(&mut self, numbers: impl Iterator<Item = f32>) -> bool {
        let mut nan = false;
        let write = |(to, number): (&mut f32, f32)| {
            nan |= number.is_nan();
            *to = number;
        };
        match self.width {
            // Without steps, the compiler converts several numbers at once.
            1 => self.values.iter_mut().zip(numbers).for_each(write),
            _ => self.iter_mut().zip(numbers).for_each(write),
        }
        nan
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut f32> {
        self.values[self.at..].iter_mut().step_by(self.width)
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

/// What a field contains, and the columns from which it is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'c> {
    /// f32 `[N, columns]`.
    Numbers { columns: &'c [String], missing: Option<f32> },
    /// int64 `[N]`.
    Integers { column: &'c str, missing: Option<i64> },
    /// Ids of categories, int64 `[N]`.
    Ids { column: &'c str, known: &'c Categories, missing: Option<i64> },
}

impl<'c> Content<'c> {
    /// Reads the field from `rows` and writes it to the places of these rows.
    pub(super) fn read(self, rows: &mut impl Rows<'c>, places: Places<'_>) -> Result<()> {
        match (self, places) {
            (Self::Numbers { columns, missing }, Places::F32 { values, width }) => {
                for (at, column) in columns.iter().enumerate() {
                    rows.floats(column, missing, Column { values, at, width })?;
                }
                Ok(())
            }
            (Self::Integers { column, missing }, Places::I64(to)) => {
                rows.integers(column, missing, to)
            }
            (Self::Ids { column, known, missing }, Places::I64(to)) => {
                rows.ids(column, known, missing, to)
            }
            _ => unreachable!("the places are those of this content"),
        }
    }
}
