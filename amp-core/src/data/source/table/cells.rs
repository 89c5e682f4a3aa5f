//! Converts columns of a table to tensors.

use std::borrow::Cow;

use tch::Tensor;

use super::Categories;
use crate::{Error, Result};

/// The rows of a table, which are read by column. A missing value is `None`.
pub(super) trait Rows {
    fn len(&self) -> usize;

    /// Returns the file and line of a row for error messages, such as `people.csv, line 3`.
    fn place(&self, row: usize) -> String;

    /// Returns the numbers in a column, rounded to f32.
    fn floats(&self, column: &str) -> Result<Vec<Option<f32>>>;

    fn integers(&self, column: &str) -> Result<Vec<Option<i64>>>;

    fn texts(&self, column: &str) -> Result<Vec<Option<Cow<'_, str>>>>;
}

/// The error text for a missing value.
const MISSING: &str = "is missing: fill the table, or declare a value for missing ones";

/// Builds the error for a cell that cannot be converted. `why` is the reason.
pub(super) fn refused(rows: &impl Rows, row: usize, column: &str, why: &str) -> Error {
    Error::config(format!("{}: `{column}` {why}", rows.place(row)))
}

fn present<T: Copy>(
    rows: &impl Rows,
    column: &str,
    cells: Vec<Option<T>>,
    fill: Option<T>,
) -> Result<Vec<T>> {
    let cells = cells
        .into_iter()
        .enumerate()
        .map(|(row, cell)| cell.or(fill).ok_or_else(|| refused(rows, row, column, MISSING)));
    cells.collect()
}

/// Reads columns of numbers as f32 `[N, columns]`.
pub(super) fn numbers(
    rows: &impl Rows,
    columns: &[impl AsRef<str>],
    fill: Option<f32>,
) -> Result<Tensor> {
    let mut all = Vec::with_capacity(columns.len());
    for column in columns {
        let column = column.as_ref();
        // A NaN is treated as a missing value. If it reached the model, it would make all weights
        // NaN.
        let cells = rows.floats(column)?.into_iter().map(|cell| cell.filter(|own| !own.is_nan()));
        all.push(Tensor::f_from_slice(&present(rows, column, cells.collect(), fill)?)?);
    }
    match all.as_slice() {
        [] => Err(Error::config("a field of numbers needs at least one column")),
        all => Ok(Tensor::f_stack(all, 1)?),
    }
}

/// Reads a column of integers as int64 `[N]`.
pub(super) fn integers(rows: &impl Rows, column: &str, fill: Option<i64>) -> Result<Tensor> {
    let cells = present(rows, column, rows.integers(column)?, fill)?;
    Ok(Tensor::f_from_slice(&cells)?)
}

/// Reads a column of categories as ids, int64 `[N]`.
pub(super) fn ids(
    rows: &impl Rows,
    column: &str,
    categories: &Categories,
    fill: Option<&str>,
) -> Result<Tensor> {
    let fill = categories.filled(column, fill)?;
    let mut ids = Vec::with_capacity(rows.len());
    for (row, cell) in rows.texts(column)?.into_iter().enumerate() {
        let id = match cell {
            None => fill.ok_or_else(|| refused(rows, row, column, MISSING)),
            Some(name) => categories.id(&name).ok_or_else(|| {
                let known = "a known category; Categories::with_unknown adds an id for all others";
                refused(rows, row, column, &format!("is `{name}`, which is not {known}"))
            }),
        };
        ids.push(id?);
    }
    Ok(Tensor::f_from_slice(&ids)?)
}
