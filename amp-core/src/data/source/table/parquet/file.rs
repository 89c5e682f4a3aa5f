//! Reads a Parquet file by row groups.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema, SchemaRef};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    basic::ConvertedType,
    errors::ParquetError,
};

use super::{
    super::{
        Categories,
        cells::{Column, Rows},
        fields::Part,
    },
    arrays::{self, Dictionaries, Unfit},
    positioned::Positioned,
};
use crate::{Error, Result};

/// The number of rows that are decoded at once: few enough that their values are still in the CPU
/// cache when they are converted.
const ROWS: usize = 4096;

/// The number of rows that are decoded at once to find the distinct texts of a column.
const NAMES: usize = 1 << 20;

/// The part of an error message that says which types a column of categories may have.
const TEXT: &str = "of text or whole numbers";

#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    file: Positioned,
    /// The columns' names and types as error messages show them, without dictionaries.
    types: SchemaRef,
    /// The metadata in the file's footer, and the types to which the columns are decoded.
    footer: ArrowReaderMetadata,
}

impl File {
    /// Opens a file and reads its footer.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = fs::File::open(path).map_err(|error| Error::io(path, error))?;
        let file = Positioned::new(file);
        // The Arrow schema that pandas and arrow add to the file is ignored, so that categorical
        // columns are read as text.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let footer =
            ArrowReaderMetadata::load(&file, options).map_err(|error| damaged(path, &error))?;
        let types = footer.schema().clone();
        let options = ArrowReaderOptions::new().with_schema(with_dictionaries(&footer).into());
        let footer = ArrowReaderMetadata::try_new(footer.metadata().clone(), options)
            .map_err(|error| damaged(path, &error))?;
        let own = Self { path: path.to_owned(), file, types, footer };
        let all = own.group_rows().try_fold(0_i64, |all, rows| match rows {
            0.. => all.checked_add(rows),
            _ => None,
        });
        match all {
            Some(_) => Ok(own),
            None => Err(incomplete(path, "the footer states a negative or too large row count")),
        }
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.footer.schema().fields().iter().map(|field| field.name().as_str())
    }

    pub(super) fn group_rows(&self) -> impl Iterator<Item = i64> {
        self.footer.metadata().row_groups().iter().map(|group| group.num_rows())
    }

    /// Returns the number of rows of a row group.
    pub(super) fn rows_of(&self, group: usize) -> usize {
        self.footer.metadata().row_group(group).num_rows().cast_unsigned() as usize
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

    /// Reads a row group and writes its rows to `part`, the slice of the batch's tensors for these
    /// rows.
    pub(super) fn fill<'c>(
        &self,
        group: usize,
        columns: impl IntoIterator<Item = &'c str>,
        mut part: Part<'_, 'c>,
    ) -> Result<()> {
        let first: i64 = self.group_rows().take(group).sum();
        let batch = RecordBatch::new_empty(self.footer.schema().clone());
        let mut rows = BatchRows { file: self, first, batch, dictionaries: Vec::new() };
        for batch in self.batches(group, columns, ROWS)? {
            rows.batch = batch?;
            let count = rows.batch.num_rows();
            let places = part.first(count).ok_or_else(|| self.another_count(group))?;
            places.read(&mut rows)?;
            rows.first += count as i64;
        }
        match part.len() {
            0 => Ok(()),
            _ => Err(self.another_count(group)),
        }
    }

    /// Returns the distinct texts of a column in one row group.
    pub(super) fn names(&self, group: usize, column: &str) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for batch in self.batches(group, [column], NAMES)? {
            for array in batch?.columns() {
                arrays::names(array, &mut names).map_err(|_| self.unfit(column, TEXT))?;
            }
        }
        Ok(names)
    }

    /// Reads these columns of one row group, in batches of at most `rows` rows.
    fn batches<'c>(
        &self,
        group: usize,
        columns: impl IntoIterator<Item = &'c str>,
        rows: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
        let roots = columns.into_iter().map(|column| self.root(column));
        let roots = roots.collect::<Result<Vec<_>>>()?;
        let mask = ProjectionMask::roots(self.footer.parquet_schema(), roots);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(
            self.file.clone(),
            self.footer.clone(),
        );
        let reader = reader.with_projection(mask).with_row_groups(vec![group]);
        let reader = reader.with_batch_size(rows).build();
        let reader = reader.map_err(|error| damaged(&self.path, &error))?;
        Ok(reader.map(|batch| batch.map_err(|error| damaged(&self.path, &error))))
    }

    fn another_count(&self, group: usize) -> Error {
        let why = format!("row group {group} has fewer or more rows than the footer says");
        incomplete(&self.path, &why)
    }

    /// Builds the error for a column whose type cannot be converted.
    fn unfit(&self, column: &str, expected: &str) -> Error {
        let mut fields = self.types.fields().iter().filter(|field| field.name() == column);
        let kind = fields.next().map_or(&DataType::Null, |field| field.data_type());
        let path = self.path.display();
        Error::config(format!("{path}: `{column}` is of type {kind}, not {expected}"))
    }
}

/// Returns the types to which the columns are decoded. Text is decoded to an Arrow dictionary: a
/// list of the distinct texts, and an index into it for each row. Parquet files mostly store text
/// in this form, so the text is not copied for each row.
fn with_dictionaries(footer: &ArrowReaderMetadata) -> Schema {
    let types = footer.schema();
    let stored = footer.parquet_schema().root_schema().get_fields();
    let fields = types.fields().iter().enumerate().map(|(at, field)| {
        // The parquet crate decodes a column to a dictionary only if the file declares its type as
        // UTF8, not if it declares another type of text, such as JSON.
        let text = stored.get(at).is_some_and(|stored| {
            let kind = stored.get_basic_info().converted_type();
            stored.name() == field.name() && kind == ConvertedType::UTF8
        });
        let field = field.as_ref().clone();
        match field.data_type() {
            DataType::Utf8 if text => field.with_data_type(DataType::Dictionary(
                Box::new(DataType::Int32),
                Box::new(DataType::Utf8),
            )),
            _ => field,
        }
    });
    Schema::new_with_metadata(fields.collect::<Vec<_>>(), types.metadata().clone())
}

fn damaged(path: &Path, error: &(impl std::error::Error + 'static)) -> Error {
    let text = error.to_string();
    // Only the first line is used, because some errors of the parquet crate have several lines.
    let line = text.lines().next().unwrap_or_default();
    let own: &(dyn std::error::Error + 'static) = error;
    match own.downcast_ref::<ParquetError>() {
        Some(ParquetError::General(_) | ParquetError::EOF(_)) => incomplete(path, line),
        _ => Error::config(format!("{}: {line}", path.display())),
    }
}

fn incomplete(path: &Path, why: &str) -> Error {
    Error::config(format!("{}: not a complete Parquet file: {why}", path.display()))
}

/// The rows of an Arrow record batch, which was read from a row group.
struct BatchRows<'f, 'c> {
    file: &'f File,
    /// The index of the batch's first row in the file, counted from 0.
    first: i64,
    batch: RecordBatch,
    dictionaries: Dictionaries<'c>,
}

impl BatchRows<'_, '_> {
    fn array(&self, column: &str) -> Result<ArrayRef> {
        self.batch.column_by_name(column).cloned().ok_or_else(|| {
            let path = self.file.path.display();
            Error::config(format!("{path}: the column `{column}` was not read"))
        })
    }

    fn unfit(&self, column: &str, unfit: Unfit, expected: &str) -> Error {
        match unfit {
            Unfit::Type => self.file.unfit(column, expected),
            Unfit::Missing(row) => self.missing(row, column),
            Unfit::Unknown(row, name) => self.unknown(row, column, &name),
            Unfit::NotWhole(row, number) => {
                let why = format!("is {number}, which is not an int64 integer");
                self.refused(row, column, &why)
            }
        }
    }
}

impl<'c> Rows<'c> for BatchRows<'_, 'c> {
    fn place(&self, row: usize) -> String {
        format!("{}, row {}", self.file.path.display(), self.first + row as i64)
    }

    fn floats(&mut self, column: &str, missing: Option<f32>, to: Column<'_>) -> Result<()> {
        arrays::floats(&self.array(column)?, missing, to)
            .map_err(|unfit| self.unfit(column, unfit, "of numbers"))
    }

    fn integers(&mut self, column: &str, missing: Option<i64>, to: &mut [i64]) -> Result<()> {
        arrays::integers(&self.array(column)?, missing, to)
            .map_err(|unfit| self.unfit(column, unfit, "of whole numbers"))
    }

    fn ids(
        &mut self,
        column: &str,
        known: &'c Categories,
        missing: Option<i64>,
        to: &mut [i64],
    ) -> Result<()> {
        let array = self.array(column)?;
        arrays::ids(&array, column, known, missing, &mut self.dictionaries, to)
            .map_err(|unfit| self.unfit(column, unfit, TEXT))
    }
}
