//! Reads CSV files and converts their columns to tensors.

mod cells;

use std::{
    borrow::Cow,
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use tch::Tensor;

use self::cells::Cells;
use super::{
    Categories, Columns,
    categories::Ids,
    cells::{Column, Content, Rows},
    fields::{Fields, Part},
};
use crate::{Error, Result, data::AnyBatch};

/// The number of rows in a chunk. All columns of a chunk are converted before the next chunk
/// is read, so that the text of the chunk stays in the cache of a core.
const ROWS: usize = 1024;

/// A CSV file, read into memory. The first row contains the names of the columns. The methods
/// convert single columns to tensors. [`Columns`] converts several columns at once, to a batch of
/// the whole file.
///
/// ```no_run,standalone_crate
/// use amp_core::{Batch, Result, data::{DataModule, Table}, tch::Tensor};
///
/// #[derive(Batch)]
/// struct People {
///     numbers: Tensor,
///     #[batch(ids)]
///     job: Tensor,
///     earns_much: Tensor,
/// }
///
/// # fn main() -> Result<()> {
/// let (train, val) = (Table::read("train.csv")?, Table::read("val.csv")?);
/// // The ids of both sets follow from the jobs of the training set.
/// let jobs = train.categories("job")?.with_unknown();
/// let people = |table: &Table| -> Result<People> {
///     Ok(People {
///         numbers: table.numbers(&["age", "hours"])?,
///         job: table.ids("job", &jobs)?,
///         earns_much: table.numbers(&["earns_much"])?,
///     })
/// };
/// let data = DataModule::new("people", people(&train)?, people(&val)?, 64);
/// // The model's embedding of jobs has `jobs.len()` rows.
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Table {
    path: PathBuf,
    columns: Vec<String>,
    /// The cells of the file. The first row contains the names of the columns.
    cells: Cells,
}

impl Table {
    /// Reads a file whose cells are separated by commas. Quotes, and line breaks within cells,
    /// follow RFC 4180.
    ///
    /// # Errors
    /// When the file cannot be read or is not UTF-8, two columns have the same name, or two rows have
    /// different numbers of cells.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::read_separated(path, b',')
    }

    /// Reads a file as [`read`](Self::read) does, but with another character between cells, such as
    /// `b';'` or `b'\t'`.
    ///
    /// # Errors
    /// When the file cannot be read or is not UTF-8, two columns have the same name, or two rows have
    /// different numbers of cells. When the separator is a quote, a line break or not ASCII.
    pub fn read_separated(path: impl AsRef<Path>, separator: u8) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let refused = |why: &str| Error::config(format!("{}: {why}", path.display()));
        if !separator.is_ascii() || matches!(separator, b'"' | b'\r' | b'\n') {
            let byte = separator.escape_ascii();
            return Err(refused(&format!(
                "cells cannot be separated by `{byte}`: choose an ASCII character other than a quote and a line break"
            )));
        }
        let file = fs::read(&path).map_err(|error| Error::io(&path, error))?;
        let text = String::from_utf8(file).map_err(|error| {
            let line = cells::line(error.as_bytes(), error.utf8_error().valid_up_to());
            refused(&format!("line {line} is not UTF-8: save the file as UTF-8"))
        })?;
        let cells = Cells::new(text, separator).map_err(|why| refused(&why))?;
        let columns: Vec<String> = match cells.rows() {
            0 => Vec::new(),
            _ => cells.row(0).map(Cow::into_owned).collect(),
        };
        for (at, column) in columns.iter().enumerate() {
            if columns[..at].contains(column) {
                let path = path.display();
                return Err(Error::config(format!("{path}: two columns are called `{column}`")));
            }
        }
        Ok(Self { path, columns, cells })
    }

    /// Returns the number of rows.
    pub fn len(&self) -> i64 {
        self.rows() as i64
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// Returns the columns' names.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Reads columns of numbers as f32, of shape `[N, columns]`.
    ///
    /// # Errors
    /// When a column is missing, or a cell is empty or not a number.
    pub fn numbers(&self, columns: &[&str]) -> Result<Tensor> {
        self.with_numbers(columns, None)
    }

    /// Converts columns as [`numbers`](Self::numbers) does, but replaces empty cells and NaN by
    /// `missing`.
    ///
    /// # Errors
    /// When the table has no such column, or a cell that is not empty is not a number.
    pub fn numbers_or(&self, columns: &[&str], missing: f32) -> Result<Tensor> {
        self.with_numbers(columns, Some(missing))
    }

    /// Reads a column of whole numbers, for example of classes, as int64 of shape `[N]`.
    ///
    /// # Errors
    /// When the column is missing, or a cell is empty or not a whole number.
    pub fn integers(&self, column: &str) -> Result<Tensor> {
        self.field(Content::Integers { column, missing: None })
    }

    /// Returns the categories of a column: the different texts in its cells, sorted by their bytes.
    /// Empty cells are not a category.
    ///
    /// # Errors
    /// When the column is missing.
    pub fn categories(&self, column: &str) -> Result<Categories> {
        let at = self.index(column)?;
        let cells = (0..self.rows()).map(|row| self.cell(row, at));
        Ok(Categories::of(cells.filter(|cell| !cell.is_empty()).collect::<HashSet<_>>()))
    }

    /// Reads a column of categories as ids, int64 of shape `[N]`.
    ///
    /// # Errors
    /// When the table has no such column or a cell is empty. When a cell is not one of the
    /// categories, and the categories have no id for unknown names.
    pub fn ids(&self, column: &str, categories: &Categories) -> Result<Tensor> {
        self.field(Content::Ids { column, known: categories, missing: None })
    }

    /// Converts all rows to a batch with the fields that `columns` declares. The batch can be used
    /// as a data set in memory.
    ///
    /// # Errors
    /// When the table lacks a column, or a cell does not fit the field for which it is used.
    pub fn batch(&self, columns: &Columns) -> Result<AnyBatch> {
        let mut fields = columns.fields(self.rows())?;
        self.fill(fields.part())?;
        columns.batch(fields)
    }

    fn with_numbers(&self, columns: &[&str], missing: Option<f32>) -> Result<Tensor> {
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        self.field(Content::Numbers { columns: &columns, missing })
    }

    fn field(&self, content: Content<'_>) -> Result<Tensor> {
        let mut fields = Fields::new([content], self.rows())?;
        self.fill(fields.part())?;
        match fields.tensors().next() {
            Some(tensor) => Ok(tensor),
            None => unreachable!("there is one field"),
        }
    }

    /// Reads all rows and writes them to `part`, which holds the tensors' elements for all rows.
    fn fill<'c>(&self, mut part: Part<'_, 'c>) -> Result<()> {
        let mut rows = SomeRows { table: self, first: 0, count: 0, ids: Vec::new() };
        // The loop runs once even for a table without rows, so that `read` reports a column that
        // does not exist.
        loop {
            rows.count = ROWS.min(self.rows() - rows.first);
            let Some(places) = part.first(rows.count) else {
                unreachable!("the fields have an element for each row");
            };
            places.read(&mut rows)?;
            rows.first += rows.count;
            if rows.first == self.rows() {
                return Ok(());
            }
        }
    }

    fn index(&self, column: &str) -> Result<usize> {
        self.columns.iter().position(|name| name == column).ok_or_else(|| {
            let (path, names) = (self.path.display(), self.columns.join(", "));
            Error::config(format!("{path}: no column `{column}`; there are {names}"))
        })
    }

    fn rows(&self) -> usize {
        // The first row of the file contains the names of the columns.
        self.cells.rows().saturating_sub(1)
    }

    fn cell(&self, row: usize, column: usize) -> Cow<'_, str> {
        self.cells.cell(1 + row, column)
    }
}

/// Consecutive rows of a table.
struct SomeRows<'t, 'c> {
    table: &'t Table,
    first: usize,
    count: usize,
    /// For each list of categories that was used so far, the map from names to ids.
    ids: Vec<Ids<'c>>,
}

impl SomeRows<'_, '_> {
    /// Converts a column: calls `convert` with the index and the text of each cell, and writes the
    /// results to `to`. If a cell is empty or `convert` returns `None`, the value is missing.
    fn each<'o, T: Copy + 'o>(
        &self,
        column: &str,
        missing: Option<T>,
        to: impl Iterator<Item = &'o mut T>,
        convert: impl Fn(usize, &str) -> Result<Option<T>>,
    ) -> Result<()> {
        let at = self.table.index(column)?;
        for (row, to) in (0..self.count).zip(to) {
            let value = match &*self.table.cell(self.first + row, at) {
                "" => None,
                cell => convert(row, cell)?,
            };
            *to = value.or(missing).ok_or_else(|| self.missing(row, column))?;
        }
        Ok(())
    }

    fn parsed<T: FromStr>(
        &self,
        row: usize,
        column: &str,
        cell: &str,
        expected: &str,
    ) -> Result<T> {
        cell.parse().map_err(|_| {
            self.refused(row, column, &format!("is `{cell}`, which is not {expected}"))
        })
    }
}

impl<'c> Rows<'c> for SomeRows<'_, 'c> {
    fn place(&self, row: usize) -> String {
        format!(
            "{}, line {}",
            self.table.path.display(),
            self.table.cells.line(1 + self.first + row)
        )
    }

    fn floats(&mut self, column: &str, missing: Option<f32>, mut to: Column<'_>) -> Result<()> {
        self.each(column, missing, to.iter_mut(), |row, cell| {
            let number: f32 = self.parsed(row, column, cell, "a number")?;
            // A NaN counts as a missing value, because in training a NaN would make all weights
            // NaN.
            Ok(Some(number).filter(|number| !number.is_nan()))
        })
    }

    fn integers(&mut self, column: &str, missing: Option<i64>, to: &mut [i64]) -> Result<()> {
        self.each(column, missing, to.iter_mut(), |row, cell| {
            self.parsed(row, column, cell, "a whole number").map(Some)
        })
    }

    fn ids(
        &mut self,
        column: &str,
        known: &'c Categories,
        missing: Option<i64>,
        to: &mut [i64],
    ) -> Result<()> {
        let same = |ids: &Ids<'c>| std::ptr::eq(ids.categories(), known);
        let at = self.ids.iter().position(same).unwrap_or_else(|| {
            self.ids.push(known.ids());
            self.ids.len() - 1
        });
        let ids = &self.ids[at];
        self.each(column, missing, to.iter_mut(), |row, cell| {
            ids.id(cell).map(Some).ok_or_else(|| self.unknown(row, column, cell))
        })
    }
}
