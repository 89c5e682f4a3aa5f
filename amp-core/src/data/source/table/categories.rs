use std::{collections::HashMap, path::Path};

use serde::{Deserialize, Serialize};

use super::saved;
use crate::{Error, Result};

/// The different names that occur in a column. The id of a name is its position among the names in
/// sorted order.
///
/// A trained model needs the same categories again. Save them with the model as a field with
/// `#[state]`, or in a separate file with [`save`](Self::save).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Categories {
    /// The names, sorted by their bytes. The position of a name is its id.
    names: Vec<String>,
    unknown: bool,
}

/// Categories as read from a file, not yet checked.
#[derive(Deserialize)]
struct Stored {
    names: Vec<String>,
    unknown: bool,
}

impl TryFrom<Stored> for Categories {
    type Error = &'static str;

    fn try_from(Stored { names, unknown }: Stored) -> Result<Self, &'static str> {
        match names.is_sorted_by(|one, next| one < next) {
            true => Ok(Self { names, unknown }),
            false => Err("the names of categories are not in the order of their bytes"),
        }
    }
}

impl Categories {
    /// Collects the different names and sorts them by their bytes.
    pub fn of(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        names.sort_unstable();
        names.dedup();
        Self { names, unknown: false }
    }

    /// Adds one id for all names that are not among the categories. It is larger than the other
    /// ids.
    #[must_use]
    pub fn with_unknown(mut self) -> Self {
        self.unknown = true;
        self
    }

    /// Returns the names, in the order of their ids.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the number of ids, which is also the number of rows that an embedding of the ids
    /// needs.
    pub fn len(&self) -> i64 {
        self.names.len() as i64 + i64::from(self.unknown)
    }

    /// Returns whether there are no ids: neither a name nor an id for unknown names.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the id of a name. If the name is unknown, returns the id for unknown names, or
    /// `None` if there is no such id.
    pub fn id(&self, name: &str) -> Option<i64> {
        let found = self.names.binary_search_by(|known| known.as_str().cmp(name)).ok();
        found.map(|id| id as i64).or(self.unknown_id())
    }

    fn unknown_id(&self) -> Option<i64> {
        self.unknown.then_some(self.names.len() as i64)
    }

    /// Returns a hash map from names to ids. For many names, a look-up in the map is faster than
    /// [`id`](Self::id).
    pub(super) fn ids(&self) -> Ids<'_> {
        let names = self.names.iter().map(String::as_str);
        Ids { categories: self, by_name: names.zip(0..).collect() }
    }

    /// Writes the categories to a JSON file. A failed call leaves no incomplete file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        saved::save(path.as_ref(), self)
    }

    /// Reads categories from a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// When the file cannot be read, or does not contain categories.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        saved::load(path.as_ref())
    }

    pub(super) fn filled(&self, column: &str, fill: Option<&str>) -> Result<Option<i64>> {
        let Some(fill) = fill else { return Ok(None) };
        self.id(fill).map(Some).ok_or_else(|| {
            Error::config(format!(
                "the replacement for missing values of `{column}` is `{fill}`, which is not one of \
                 the column's categories: add it to the categories, or use \
                 Categories::with_unknown"
            ))
        })
    }
}

/// The ids of categories, by name.
pub(super) struct Ids<'c> {
    categories: &'c Categories,
    by_name: HashMap<&'c str, i64>,
}

impl<'c> Ids<'c> {
    pub(super) fn categories(&self) -> &'c Categories {
        self.categories
    }

    /// Returns what [`Categories::id`] returns.
    pub(super) fn id(&self, name: &str) -> Option<i64> {
        self.by_name.get(name).copied().or(self.categories.unknown_id())
    }
}
