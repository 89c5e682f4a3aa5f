//! Parquet files.

mod arrays;
mod file;
mod parallel;
mod positioned;
mod set;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    thread,
};

use self::file::File;
pub use self::set::ParquetSet;
use super::{Categories, Columns};
use crate::{Error, Result, data::AnyBatch};

/// A Parquet file, or several files with the same columns that are read as one table. Opening a
/// file reads only its footer. Rows are read in row groups, the blocks into which a Parquet file is
/// divided. Only the requested columns are read. Up to [`threads`](Self::threads) row groups are
/// decoded at once.
///
/// A column may contain integers, floating-point numbers, booleans, dates, times or text. It may be
/// compressed by Snappy, gzip, LZ4 or zstd.
///
/// ```no_run,standalone_crate
/// use amp_core::{Batch, Result, data::{Columns, DataModule, ParquetTable}, tch::Tensor};
///
/// #[derive(Batch)]
/// struct Rides {
///     numbers: Tensor,
///     #[batch(ids)]
///     city: Tensor,
///     minutes: Tensor,
/// }
///
/// # fn main() -> Result<()> {
/// let train = ParquetTable::open_all(&["rides-0.parquet", "rides-1.parquet"])?;
/// let val = ParquetTable::open("val.parquet")?;
/// let columns = Columns::new()
///     .numbers_or("numbers", &["distance", "hour"], 0.0)
///     .ids("city", "city", &train.categories("city")?.with_unknown())
///     .numbers("minutes", &["minutes"]);
/// let (train, val) = (train.lazily(columns.clone())?, val.batch(&columns)?);
/// // Mixes the rows of four row groups at a time, each of which is read once in an epoch.
/// let order = train.shuffled_groups(4)?;
/// let data = DataModule::new("rides", train, val, 1024).with_order(order);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ParquetTable {
    files: Vec<File>,
    /// The largest number of threads that decode row groups at once.
    threads: usize,
}

/// A row group: the index of the file among the table's files, and the index of the group in that
/// file.
type Group = (usize, usize);

impl ParquetTable {
    /// Opens one file.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a Parquet file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_all(&[path])
    }

    /// Opens several files as one table. The rows of the table are the rows of the files, in the
    /// order of `paths`.
    ///
    /// # Errors
    /// When the list is empty, a file cannot be read or is not a Parquet file, or the files have
    /// different columns.
    pub fn open_all(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let files = paths.iter().map(|path| File::open(path.as_ref()));
        let files = files.collect::<Result<Vec<_>>>()?;
        let Some(first) = files.first() else {
            return Err(Error::config("a table needs at least one Parquet file"));
        };
        for other in &files[1..] {
            let differs = |one: &File, two: &File| {
                one.columns()
                    .find(|name| two.columns().all(|other| other != *name))
                    .map(str::to_owned)
            };
            for (has, lacks) in [(first, other), (other, first)] {
                if let Some(column) = differs(has, lacks) {
                    return Err(Error::config(format!(
                        "{} has the column `{column}`, but {} does not",
                        has.path.display(),
                        lacks.path.display()
                    )));
                }
            }
        }
        Ok(Self { files, threads: thread::available_parallelism().map_or(1, usize::from) })
    }

    /// Sets the largest number of threads that decode row groups, at least one. Each thread decodes
    /// one row group at a time. The default is one thread for each core. The rows and their order
    /// do not depend on this number.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Returns the number of rows.
    pub fn len(&self) -> i64 {
        self.group_rows().iter().sum()
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the columns' names.
    pub fn columns(&self) -> Vec<String> {
        self.files[0].columns().map(str::to_owned).collect()
    }

    /// Returns the number of rows of each row group.
    pub fn group_rows(&self) -> Vec<i64> {
        self.files.iter().flat_map(File::group_rows).collect()
    }

    fn groups(&self) -> impl Iterator<Item = Group> {
        let files = self.files.iter().enumerate();
        files.flat_map(|(at, file)| (0..file.group_rows().count()).map(move |group| (at, group)))
    }

    /// Returns the categories of a column: its different values, sorted by their bytes. Missing
    /// values are not a category. Reads only this column.
    ///
    /// # Errors
    /// When the column is missing or cannot be read.
    pub fn categories(&self, column: &str) -> Result<Categories> {
        let names = parallel::each(self.threads, self.groups(), |(file, group)| {
            self.files[file].names(group, column)
        })?;
        Ok(Categories::of(names.into_iter().flatten().collect::<BTreeSet<_>>()))
    }

    /// Reads all rows into memory, as a batch with the fields that `columns` declares. The batch is
    /// a data set.
    ///
    /// # Errors
    /// When the table lacks a column, a value does not fit the field for which it is used, or the
    /// table has no rows.
    pub fn batch(&self, columns: &Columns) -> Result<AnyBatch> {
        self.read(&self.groups().collect::<Vec<_>>(), columns)
    }

    /// Returns the rows as a data set that reads a row group only when one of its rows is
    /// requested.
    ///
    /// # Errors
    /// When a column is missing.
    pub fn lazily(self, columns: Columns) -> Result<ParquetSet> {
        columns.check()?;
        for file in &self.files {
            columns.read().try_for_each(|column| file.check(column))?;
        }
        Ok(ParquetSet::new(self, columns))
    }

    /// Reads row groups into one batch, in the order of `groups`.
    fn read(&self, groups: &[Group], columns: &Columns) -> Result<AnyBatch> {
        let rows = |(file, group): Group| self.files[file].rows_of(group);
        let all = groups.iter().map(|group| rows(*group)).sum();
        if all == 0 {
            return Err(Error::config("the batch would be empty, because no row was read"));
        }
        let mut fields = columns.fields(all)?;
        let mut rest = fields.part();
        let parts = groups.iter().map(|group| {
            let Some(part) = rest.first(rows(*group)) else {
                unreachable!("the fields have an element for each row");
            };
            (*group, part)
        });
        parallel::each(self.threads, parts, |((file, group), part)| {
            self.files[file].fill(group, columns.read(), part)
        })?;
        columns.batch(fields)
    }

    /// Returns the path of the table's first file, for error messages.
    fn path(&self) -> PathBuf {
        self.files[0].path.clone()
    }
}
