//! Reads CSV files and converts their columns to tensors.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    str::FromStr,
};

use tch::Tensor;

use super::{
    Categories, Columns,
    cells::{self, Rows, refused},
};
use crate::{Error, Result, data::AnyBatch};

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
    /// The cells of each row, and the number of the line at which the row begins in the file.
    rows: Vec<(u64, csv::StringRecord)>,
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
        let mut reader = csv::ReaderBuilder::new();
        let reader = reader.trim(csv::Trim::All).delimiter(separator).from_path(&path);
        let mut reader = reader.map_err(refused)?;
        let columns: Vec<String> =
            reader.headers().map_err(refused)?.iter().map(str::to_owned).collect();
        for (at, column) in columns.iter().enumerate() {
            if columns[..at].contains(column) {
                let path = path.display();
                return Err(Error::config(format!("{path}: two columns are called `{column}`")));
            }
        }
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(refused)?;
            rows.push((record.position().map_or(0, csv::Position::line), record));
        }
        Ok(Self { path, columns, rows })
    }

    /// Returns the number of rows.
    pub fn len(&self) -> i64 {
        self.rows.len() as i64
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
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
        cells::numbers(self, columns, None)
    }

    /// Converts columns as [`numbers`](Self::numbers) does, but replaces empty cells and NaN by
    /// `missing`.
    ///
    /// # Errors
    /// When the table has no such column, or a cell that is not empty is not a number.
    pub fn numbers_or(&self, columns: &[&str], missing: f32) -> Result<Tensor> {
        cells::numbers(self, columns, Some(missing))
    }

    /// Reads a column of whole numbers, for example of classes, as int64 `[N]`.
    ///
    /// # Errors
    /// When the column is missing, or a cell is empty or not a whole number.
    pub fn integers(&self, column: &str) -> Result<Tensor> {
        cells::integers(self, column, None)
    }

    /// Returns the categories of a column: the different texts in its cells, sorted by their bytes.
    /// Empty cells are not a category.
    ///
    /// # Errors
    /// When the column is missing.
    pub fn categories(&self, column: &str) -> Result<Categories> {
        Ok(Categories::of(self.texts(column)?.into_iter().flatten()))
    }

    /// Reads a column of categories as ids, int64 `[N]`.
    ///
    /// # Errors
    /// When the table has no such column or a cell is empty. When a cell is not one of the
    /// categories, and the categories have no id for unknown names.
    pub fn ids(&self, column: &str, categories: &Categories) -> Result<Tensor> {
        cells::ids(self, column, categories, None)
    }

    /// Converts all rows to a batch with the fields that `columns` declares. The batch is a data
    /// set in memory.
    ///
    /// # Errors
    /// When the table lacks a column, or a cell does not fit the field for which it is used.
    pub fn batch(&self, columns: &Columns) -> Result<AnyBatch> {
        columns.batch(self)
    }

    /// Returns the cells of a column, from the first row to the last. An empty cell is `None`.
    fn cells(&self, column: &str) -> Result<impl Iterator<Item = Option<&str>>> {
        let at = self.columns.iter().position(|name| name == column).ok_or_else(|| {
            let (path, names) = (self.path.display(), self.columns.join(", "));
            Error::config(format!("{path}: no column `{column}`; there are {names}"))
        })?;
        Ok(self.rows.iter().map(move |(_, row)| Some(&row[at]).filter(|cell| !cell.is_empty())))
    }

    fn parsed<T: FromStr>(&self, column: &str, expected: &str) -> Result<Vec<Option<T>>> {
        let cells = self.cells(column)?.enumerate().map(|(row, cell)| {
            let parsed = cell.map(|cell| {
                cell.parse().map_err(|_| {
                    refused(self, row, column, &format!("is `{cell}`, which is not {expected}"))
                })
            });
            parsed.transpose()
        });
        cells.collect()
    }
}

impl Rows for Table {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn place(&self, row: usize) -> String {
        format!("{}, line {}", self.path.display(), self.rows[row].0)
    }

    fn floats(&self, column: &str) -> Result<Vec<Option<f32>>> {
        self.parsed(column, "a number")
    }

    fn integers(&self, column: &str) -> Result<Vec<Option<i64>>> {
        self.parsed(column, "a whole number")
    }

    fn texts(&self, column: &str) -> Result<Vec<Option<Cow<'_, str>>>> {
        Ok(self.cells(column)?.map(|cell| cell.map(Cow::Borrowed)).collect())
    }
}
