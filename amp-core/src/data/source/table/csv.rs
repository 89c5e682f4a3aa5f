//! Reads CSV files and converts their columns to tensors.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use tch::Tensor;

use super::{
    Categories, Columns,
    categories::Ids,
    cells::{Column, Content, Rows},
    fields::{Fields, Part},
};
use crate::{Error, Result, data::AnyBatch};

/// The number of rows that are converted at once. With so many rows, the text stays in the cache of
/// a core until all columns are converted.
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
    /// The texts of all cells, row by row, without the whitespace around them.
    text: String,
    /// The end of each cell in `text`.
    ends: Vec<usize>,
    /// The number of the line at which each row begins in the file.
    lines: Vec<u64>,
}

impl Table {
    /// Reads a file whose cells are separated by commas. Quotes, and line breaks within cells,
    /// follow RFC 4180.
    ///
    /// # Errors
    /// When the file cannot be read, two columns have the same name, or two rows have different
    /// numbers of cells.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Self::read_separated(path, b',')
    }

    /// Reads a file as [`read`](Self::read) does, but with another character between cells, such as
    /// `b';'` or `b'\t'`.
    ///
    /// # Errors
    /// When the file cannot be read, two columns have the same name, or two rows have different
    /// numbers of cells.
    pub fn read_separated(path: impl AsRef<Path>, separator: u8) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let refused = |error: csv::Error| {
            let why = error.to_string();
            match error.into_kind() {
                csv::ErrorKind::Io(error) => Error::io(&path, error),
                _ => Error::config(format!("{}: {why}", path.display())),
            }
        };
        let file = fs::read(&path).map_err(|error| Error::io(&path, error))?;
        let mut reader = csv::ReaderBuilder::new();
        let mut reader = reader.delimiter(separator).from_reader(file.as_slice());
        let columns = reader.headers().map_err(refused)?.iter();
        let columns: Vec<String> = columns.map(|column| column.trim().to_owned()).collect();
        for (at, column) in columns.iter().enumerate() {
            if columns[..at].contains(column) {
                let path = path.display();
                return Err(Error::config(format!("{path}: two columns are called `{column}`")));
            }
        }
        let (mut text, mut ends, mut lines) = (String::new(), Vec::new(), Vec::new());
        let mut row = csv::StringRecord::new();
        while reader.read_record(&mut row).map_err(refused)? {
            for cell in &row {
                text.push_str(cell.trim());
                ends.push(text.len());
            }
            lines.push(row.position().map_or(0, |position| line(&file, position)));
        }
        Ok(Self { path, columns, text, ends, lines })
    }

    /// Returns the number of rows.
    pub fn len(&self) -> i64 {
        self.lines.len() as i64
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Returns the columns' names.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Reads columns of numbers as f32 `[N, columns]`.
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

    /// Reads a column of whole numbers, for example of classes, as int64 `[N]`.
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
        let cells = (0..self.lines.len()).map(|row| self.cell(row, at));
        Ok(Categories::of(cells.filter(|cell| !cell.is_empty()).collect::<HashSet<_>>()))
    }

    /// Reads a column of categories as ids, int64 `[N]`.
    ///
    /// # Errors
    /// When the table has no such column or a cell is empty. When a cell is not one of the
    /// categories, and the categories have no id for unknown names.
    pub fn ids(&self, column: &str, categories: &Categories) -> Result<Tensor> {
        self.field(Content::Ids { column, known: categories, missing: None })
    }

    /// Converts all rows to a batch with the fields that `columns` declares. The batch is a data
    /// set in memory.
    ///
    /// # Errors
    /// When the table lacks a column, or a cell does not fit the field for which it is used.
    pub fn batch(&self, columns: &Columns) -> Result<AnyBatch> {
        let mut fields = columns.fields(self.lines.len())?;
        self.fill(fields.part())?;
        columns.batch(fields)
    }

    fn with_numbers(&self, columns: &[&str], missing: Option<f32>) -> Result<Tensor> {
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        self.field(Content::Numbers { columns: &columns, missing })
    }

    fn field(&self, content: Content<'_>) -> Result<Tensor> {
        let mut fields = Fields::new([content], self.lines.len())?;
        self.fill(fields.part())?;
        match fields.tensors().next() {
            Some(tensor) => Ok(tensor),
            None => unreachable!("there is one field"),
        }
    }

    /// Reads all rows, and writes them to `part`, their places.
    fn fill<'c>(&self, mut part: Part<'_, 'c>) -> Result<()> {
        let mut rows = SomeRows { table: self, first: 0, count: 0, ids: Vec::new() };
        while rows.first < self.lines.len() {
            rows.count = ROWS.min(self.lines.len() - rows.first);
            let Some(places) = part.first(rows.count) else {
                unreachable!("there are places for all rows");
            };
            places.read(&mut rows)?;
            rows.first += rows.count;
        }
        Ok(())
    }

    fn index(&self, column: &str) -> Result<usize> {
        self.columns.iter().position(|name| name == column).ok_or_else(|| {
            let (path, names) = (self.path.display(), self.columns.join(", "));
            Error::config(format!("{path}: no column `{column}`; there are {names}"))
        })
    }

    fn cell(&self, row: usize, column: usize) -> &str {
        let at = row * self.columns.len() + column;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[at]]
    }
}

/// Returns the number of the line at which a row begins. `position` may be before line breaks that
/// precede the row.
fn line(file: &[u8], position: &csv::Position) -> u64 {
    let behind = &file[position.byte() as usize..];
    let breaks = behind.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    position.line() + breaks.filter(|byte| **byte == b'\n').count() as u64
}

/// Consecutive rows of a table.
struct SomeRows<'t, 'c> {
    table: &'t Table,
    first: usize,
    count: usize,
    /// The ids of the categories that were used so far.
    ids: Vec<Ids<'c>>,
}

impl<'t, 'c> SomeRows<'t, 'c> {
    /// Writes what `convert` returns for each row and its cell in a column. `None` is a missing
    /// value, as an empty cell is.
    fn each<'o, T: Copy + 'o>(
        &self,
        column: &str,
        missing: Option<T>,
        to: impl Iterator<Item = &'o mut T>,
        convert: impl Fn(usize, &'t str) -> Result<Option<T>>,
    ) -> Result<()> {
        let at = self.table.index(column)?;
        for (row, to) in (0..self.count).zip(to) {
            let value = match self.table.cell(self.first + row, at) {
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
        format!("{}, line {}", self.table.path.display(), self.table.lines[self.first + row])
    }

    fn floats(&mut self, column: &str, missing: Option<f32>, mut to: Column<'_>) -> Result<()> {
        self.each(column, missing, to.iter_mut(), |row, cell| {
            let number: f32 = self.parsed(row, column, cell, "a number")?;
            // If a NaN reached the model, it would make all weights NaN.
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
