use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Categories, cells, fields::Fields, saved};
use crate::{
    Error, Result,
    data::{AnyBatch, FieldRole},
};

/// Says which columns of a table become which fields of a batch. A missing value is an empty cell,
/// a null or a NaN. If no replacement for missing values is declared, a missing value is an error
/// that names the file, row and column.
///
/// A `Columns` contains the categories of the training set. A trained model therefore needs it to
/// read other tables. Save it with the model as a field with `#[state]`, or in a separate file.
///
/// ```no_run,standalone_crate
/// use amp_core::{Batch, Result, data::{Columns, DataModule, Table}, tch::Tensor};
///
/// #[derive(Batch)]
/// struct People {
///     numbers: Tensor,
///     #[batch(ids)]
///     job: Tensor,
///     class: Tensor,
/// }
///
/// # fn main() -> Result<()> {
/// let (train, val) = (Table::read("train.csv")?, Table::read("val.csv")?);
/// let columns = Columns::new()
///     .numbers_or("numbers", &["age", "hours"], 0.0)
///     .ids_or("job", "job", &train.categories("job")?.with_unknown(), "none")
///     .integers("class", "class");
/// columns.save("columns.json")?;
/// let data = DataModule::new("people", train.batch(&columns)?, val.batch(&columns)?, 64);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Columns {
    fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Field {
    name: String,
    #[serde(flatten)]
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Content {
    Numbers { columns: Vec<String>, missing: Option<f32> },
    Missing { columns: Vec<String> },
    Integers { column: String, missing: Option<i64> },
    Ids { column: String, categories: Categories, missing: Option<String> },
}

impl Columns {
    /// Creates an empty list of fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field with the numbers of these columns, as f32 of shape `[N, columns]`.
    #[must_use]
    pub fn numbers(self, field: &str, columns: &[&str]) -> Self {
        self.with_numbers(field, columns, None)
    }

    /// Adds a field of numbers as [`numbers`](Self::numbers) does, but replaces missing values by
    /// `missing`, which must be finite.
    #[must_use]
    pub fn numbers_or(self, field: &str, columns: &[&str], missing: f32) -> Self {
        self.with_numbers(field, columns, Some(missing))
    }

    /// Adds a field that is 1 where a number of these columns is missing and 0 elsewhere, as f32 of
    /// shape `[N, columns]`. With this field, a model can tell a missing number from the
    /// replacement that [`numbers_or`](Self::numbers_or) gives.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use amp_core::data::{Columns, Table};
    ///
    /// # fn main() -> amp_core::Result<()> {
    /// let columns = Columns::new()
    ///     .numbers_or("numbers", &["age", "hours"], 0.0)
    ///     .missing("unknown", &["age", "hours"]);
    /// let people = Table::read("train.csv")?.batch(&columns)?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn missing(self, field: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        self.with(field, Content::Missing { columns })
    }

    fn with_numbers(self, field: &str, columns: &[&str], missing: Option<f32>) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        self.with(field, Content::Numbers { columns, missing })
    }

    /// Adds a field of whole numbers, for example of classes, as int64 of shape `[N]`.
    #[must_use]
    pub fn integers(self, field: &str, column: &str) -> Self {
        self.with(field, Content::Integers { column: column.to_owned(), missing: None })
    }

    /// Adds a field of integers as [`integers`](Self::integers) does, but replaces missing values
    /// by `missing`. Losses and metrics ignore targets of the value -100.
    #[must_use]
    pub fn integers_or(self, field: &str, column: &str, missing: i64) -> Self {
        self.with(field, Content::Integers { column: column.to_owned(), missing: Some(missing) })
    }

    /// Adds a field of category ids, for an embedding, as int64 of shape `[N]`.
    #[must_use]
    pub fn ids(self, field: &str, column: &str, categories: &Categories) -> Self {
        let (column, categories) = (column.to_owned(), categories.clone());
        self.with(field, Content::Ids { column, categories, missing: None })
    }

    /// Adds a field of ids as [`ids`](Self::ids) does, but replaces missing values by the category
    /// `missing`.
    #[must_use]
    pub fn ids_or(self, field: &str, column: &str, categories: &Categories, missing: &str) -> Self {
        let (column, categories) = (column.to_owned(), categories.clone());
        self.with(field, Content::Ids { column, categories, missing: Some(missing.to_owned()) })
    }

    fn with(mut self, name: &str, content: Content) -> Self {
        self.fields.push(Field { name: name.to_owned(), content });
        self
    }

    /// Writes the list of fields to a JSON file. A failed call leaves no incomplete file.
    ///
    /// # Errors
    /// When the file cannot be written, or a replacement for missing numbers is not finite.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.check()?;
        saved::save(path.as_ref(), self)
    }

    /// Reads a list of fields from a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// When the file cannot be read, or does not contain such a list.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        saved::load(path.as_ref())
    }

    /// Returns the names of the columns that the fields need.
    #[cfg(feature = "parquet")]
    pub(super) fn read(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().flat_map(|field| match &field.content {
            Content::Numbers { columns, .. } | Content::Missing { columns } => {
                columns.iter().map(String::as_str).collect()
            }
            Content::Integers { column, .. } | Content::Ids { column, .. } => vec![column.as_str()],
        })
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.fields.is_empty() {
            return Err(Error::config(
                "no columns: a batch needs at least one field, for example of `numbers`",
            ));
        }
        for Field { name, content } in &self.fields {
            match content {
                Content::Numbers { missing: Some(missing), .. } if !missing.is_finite() => {
                    return Err(Error::config(format!(
                        "the replacement for missing values of `{name}` is {missing}, which is not \
                         finite: choose a finite number"
                    )));
                }
                Content::Ids { column, categories, missing } => {
                    categories.filled(column, missing.as_deref())?;
                }
                Content::Numbers { .. } | Content::Missing { .. } | Content::Integers { .. } => {}
            }
        }
        Ok(())
    }

    /// Creates the tensors of the fields for `rows` rows. Their values are written later.
    pub(super) fn fields(&self, rows: usize) -> Result<Fields<'_>> {
        self.check()?;
        let contents = self.fields.iter().map(|field| field.content.resolved());
        Fields::new(contents.collect::<Result<Vec<_>>>()?, rows)
    }

    /// Makes a batch from `filled`: the tensors that [`fields`](Self::fields) created, after their
    /// values were written.
    pub(super) fn batch(&self, filled: Fields<'_>) -> Result<AnyBatch> {
        let mut batch = AnyBatch::new("Columns");
        for (Field { name, content }, tensor) in self.fields.iter().zip(filled.tensors()) {
            let role = match content {
                Content::Numbers { .. } | Content::Missing { .. } | Content::Integers { .. } => {
                    FieldRole::Value
                }
                Content::Ids { .. } => FieldRole::Ids,
            };
            batch.push(name.clone(), &tensor, role)?;
        }
        Ok(batch)
    }
}

impl Content {
    /// Returns the same content, but replaces the name of the category for missing values by its
    /// id.
    fn resolved(&self) -> Result<cells::Content<'_>> {
        Ok(match self {
            Self::Numbers { columns, missing } => {
                cells::Content::Numbers { columns, missing: *missing }
            }
            Self::Missing { columns } => cells::Content::Missing { columns },
            Self::Integers { column, missing } => {
                cells::Content::Integers { column, missing: *missing }
            }
            Self::Ids { column, categories, missing } => {
                let missing = categories.filled(column, missing.as_deref())?;
                cells::Content::Ids { column, known: categories, missing }
            }
        })
    }
}
