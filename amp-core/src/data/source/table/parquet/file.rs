//! Reads a Parquet file by row groups.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

use arrow_array::{ArrayRef, RecordBatch};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    errors::ParquetError,
};

use super::{
    super::cells::{Rows, refused},
    arrays,
    positioned::Positioned,
};
use crate::{Error, Result};

#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    file: Positioned,
    footer: ArrowReaderMetadata,
}

impl File {
    /// Reads the footer.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path).map_err(|error| Error::io(path, error))?;
        let file = Positioned::new(file);
        // The types that pandas and arrow store in the file are ignored, so that categories are
        // read as text.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let footer =
            ArrowReaderMetadata::load(&file, options).map_err(|error| damaged(path, &error))?;
        Ok(Self { path: path.to_owned(), file, footer })
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.footer.schema().fields().iter().map(|field| field.name().as_str())
    }

    pub(super) fn group_rows(&self) -> impl Iterator<Item = i64> {
        self.footer.metadata().row_groups().iter().map(|group| group.num_rows())
    }

    /// Returns an error if the file does not have this column.
    pub(super) fn check(&self, column: &str) -> Result<()> {
        self.root(column).map(drop)
    }

    fn root(&self, column: &str) -> Result<usize> {
        self.columns().position(|name| name == column).ok_or_else(|| {
            let names: Vec<&str> = self.columns().collect();
            let (path, names) = (self.path.display(), names.join(", "));
            Error::config(format!("{path}: no column `{column}`; there are {names}"))
        })
    }

    /// Reads these columns of one row group.
    pub(super) fn read<'c>(
        &self,
        group: usize,
        columns: impl IntoIterator<Item = &'c str>,
    ) -> Result<GroupRows<'_>> {
        let roots = columns.into_iter().map(|column| self.root(column));
        let roots = roots.collect::<Result<Vec<_>>>()?;
        let counts: Vec<i64> = self.group_rows().collect();
        let mask = ProjectionMask::roots(self.footer.parquet_schema(), roots);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.file.clone(),
            self.footer.clone(),
        )
        .with_projection(mask)
        .with_row_groups(vec![group])
        .with_batch_size(counts[group].max(1).cast_unsigned() as usize)
        .build()
        .map_err(|error| damaged(&self.path, &error))?;
        let batches = reader.collect::<std::result::Result<Vec<_>, _>>();
        let batches = batches.map_err(|error| damaged(&self.path, &error))?;
        Ok(GroupRows { path: &self.path, first: counts[..group].iter().sum(), batches })
    }
}

fn damaged(path: &Path, error: &(impl std::error::Error + 'static)) -> Error {
    let text = error.to_string();
    // Only the first line is used, because some errors of the parquet crate have several lines.
    let line = text.lines().next().unwrap_or_default();
    let own: &(dyn std::error::Error + 'static) = error;
    match own.downcast_ref::<ParquetError>() {
        Some(ParquetError::General(_) | ParquetError::EOF(_)) => {
            Error::config(format!("{}: not a complete Parquet file: {line}", path.display()))
        }
        _ => Error::config(format!("{}: {line}", path.display())),
    }
}

/// The rows of one row group.
pub(super) struct GroupRows<'f> {
    path: &'f Path,
    /// The number of the row group's first row, counted from the start of the file.
    first: i64,
    batches: Vec<RecordBatch>,
}

impl GroupRows<'_> {
    fn column<'s, T>(
        &'s self,
        column: &str,
        read: impl Fn(&'s ArrayRef) -> Option<Vec<T>>,
        expected: &str,
    ) -> Result<Vec<T>> {
        let mut cells = Vec::with_capacity(Rows::len(self));
        for batch in &self.batches {
            let Some(array) = batch.column_by_name(column) else {
                let path = self.path.display();
                return Err(Error::config(format!("{path}: the column `{column}` was not read")));
            };
            let read = read(array).ok_or_else(|| {
                let (path, kind) = (self.path.display(), array.data_type());
                Error::config(format!("{path}: `{column}` is of type {kind}, not {expected}"))
            });
            cells.extend(read?);
        }
        Ok(cells)
    }
}

impl Rows for GroupRows<'_> {
    fn len(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    fn place(&self, row: usize) -> String {
        format!("{}, row {}", self.path.display(), self.first + row as i64)
    }

    fn floats(&self, column: &str) -> Result<Vec<Option<f32>>> {
        self.column(column, |array| arrays::floats(&**array), "of numbers")
    }

    fn integers(&self, column: &str) -> Result<Vec<Option<i64>>> {
        let cells = self.column(column, |array| arrays::integers(&**array), "of whole numbers")?;
        let cells = cells.into_iter().enumerate().map(|(row, cell)| {
            cell.transpose().map_err(|number| {
                refused(self, row, column, &format!("is {number}, which is not an int64 integer"))
            })
        });
        cells.collect()
    }

    fn texts(&self, column: &str) -> Result<Vec<Option<Cow<'_, str>>>> {
        self.column(column, |array| arrays::texts(&**array), "of text or whole numbers")
    }
}
