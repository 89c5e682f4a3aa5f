//! Columns of a CSV file.

use std::path::{Path, PathBuf};

use tch::Tensor;

use crate::{Error, Result};

/// A CSV file whose first row names its columns, in memory. Its columns become tensors, which make a batch of
/// the whole set.
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
/// // nn::Embedding of `jobs.len()` rows.
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Table {
    path: PathBuf,
    columns: Vec<String>,
    /// Cells by row, each with its line in the file.
    rows: Vec<(u64, csv::StringRecord)>,
}

impl Table {
    /// Reads a file with commas between cells; quotes and line breaks in cells as RFC 4180 has them.
    ///
    /// # Errors
    /// When it cannot be read, two columns have one name, or a row has another number of cells.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let refused = |error: csv::Error| {
            let why = error.to_string();
            match error.into_kind() {
                csv::ErrorKind::Io(error) => Error::io(&path, error),
                _ => Error::config(format!("{}: {why}", path.display())),
            }
        };
        let mut reader =
            csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(&path).map_err(refused)?;
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

    /// Number of rows.
    pub fn len(&self) -> i64 {
        self.rows.len() as i64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The columns' names.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Columns of numbers: f32 `[N, columns]`.
    ///
    /// # Errors
    /// When a column is missing, or a cell is not a number.
    pub fn numbers(&self, columns: &[&str]) -> Result<Tensor> {
        self.floats(columns, None)
    }

    /// Like [`numbers`](Self::numbers), with `missing` for empty cells.
    ///
    /// # Errors
    /// When a column is missing, or a cell that is not empty is not a number.
    pub fn numbers_or(&self, columns: &[&str], missing: f32) -> Result<Tensor> {
        self.floats(columns, Some(missing))
    }

    fn floats(&self, columns: &[&str], missing: Option<f32>) -> Result<Tensor> {
        let places = columns.iter().map(|name| self.place(name)).collect::<Result<Vec<_>>>()?;
        let mut numbers = Vec::with_capacity(self.rows.len() * places.len());
        for (line, row) in &self.rows {
            for at in &places {
                numbers.push(match (&row[*at], missing) {
                    ("", Some(missing)) => missing,
                    (cell, _) => {
                        cell.parse().map_err(|_| self.cell(*line, *at, cell, "a number"))?
                    }
                });
            }
        }
        Ok(Tensor::f_from_slice(&numbers)?.f_view([self.len(), places.len() as i64])?)
    }

    /// A column of whole numbers, as of classes: int64 `[N]`.
    ///
    /// # Errors
    /// When the column is missing, or a cell is not a whole number.
    pub fn integers(&self, column: &str) -> Result<Tensor> {
        let at = self.place(column)?;
        let parsed = self.rows.iter().map(|(line, row)| {
            let cell = &row[at];
            cell.parse::<i64>().map_err(|_| self.cell(*line, at, cell, "a whole number"))
        });
        Ok(Tensor::f_from_slice(&parsed.collect::<Result<Vec<_>>>()?)?)
    }

    /// The categories of a column: its different cells in the order of their bytes.
    ///
    /// # Errors
    /// When the column is missing.
    pub fn categories(&self, column: &str) -> Result<Categories> {
        let at = self.place(column)?;
        let mut names: Vec<String> = self.rows.iter().map(|(_, row)| row[at].to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        Ok(Categories { names, unknown: false })
    }

    /// A column as places among categories: int64 `[N]`.
    ///
    /// # Errors
    /// When the column is missing, or a cell is none of the categories, which have no place for unknown ones.
    pub fn ids(&self, column: &str, categories: &Categories) -> Result<Tensor> {
        let at = self.place(column)?;
        let ids = self.rows.iter().map(|(line, row)| {
            let cell = &row[at];
            categories.id(cell).ok_or_else(|| {
                let expected = "a known category; Categories::with_unknown gives others a place";
                self.cell(*line, at, cell, expected)
            })
        });
        Ok(Tensor::f_from_slice(&ids.collect::<Result<Vec<_>>>()?)?)
    }

    fn place(&self, column: &str) -> Result<usize> {
        self.columns.iter().position(|name| name == column).ok_or_else(|| {
            let (path, names) = (self.path.display(), self.columns.join(", "));
            Error::config(format!("{path}: no column `{column}`; there are {names}"))
        })
    }

    fn cell(&self, line: u64, at: usize, cell: &str, expected: &str) -> Error {
        let (path, column) = (self.path.display(), &self.columns[at]);
        Error::config(format!(
            "{path}, line {line}: `{column}` is `{cell}`, which is not {expected}"
        ))
    }
}

/// The values that a column of names has; each has its place as id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Categories {
    /// Sorted.
    names: Vec<String>,
    unknown: bool,
}

impl Categories {
    /// The same with one more id, the last, for every other name.
    #[must_use]
    pub fn with_unknown(mut self) -> Self {
        self.unknown = true;
        self
    }

    /// The names, by id.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of ids, as for the rows of an embedding.
    pub fn len(&self) -> i64 {
        self.names.len() as i64 + i64::from(self.unknown)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id of a name.
    pub fn id(&self, name: &str) -> Option<i64> {
        let found = self.names.binary_search_by(|known| known.as_str().cmp(name)).ok();
        let unknown = self.unknown.then_some(self.names.len());
        found.or(unknown).map(|id| id as i64)
    }
}
