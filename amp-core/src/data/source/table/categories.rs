use std::path::Path;

use serde::{Deserialize, Serialize};

use super::saved;
use crate::{Error, Result};

/// The values that a column of names has; each has its place as id.
///
/// It is saved with a model as a field of `#[state]`, or in a file of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct Categories {
    /// Sorted.
    names: Vec<String>,
    unknown: bool,
}

/// As [`Categories`], before a check.
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
    /// Returns the different names in the order of their bytes.
    pub fn of(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        names.sort_unstable();
        names.dedup();
        Self { names, unknown: false }
    }

    /// Sets the same with one more id, the last, for every other name.
    #[must_use]
    pub fn with_unknown(mut self) -> Self {
        self.unknown = true;
        self
    }

    /// Returns the names, by id.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Returns the number of ids, as for the rows of an embedding.
    pub fn len(&self) -> i64 {
        self.names.len() as i64 + i64::from(self.unknown)
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the id of a name.
    pub fn id(&self, name: &str) -> Option<i64> {
        let found = self.names.binary_search_by(|known| known.as_str().cmp(name)).ok();
        let unknown = self.unknown.then_some(self.names.len());
        found.or(unknown).map(|id| id as i64)
    }

    /// Writes them into a JSON file, which appears whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        saved::save(path.as_ref(), self)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// When the file cannot be read, or has other content.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        saved::load(path.as_ref())
    }

    pub(super) fn filled(&self, column: &str, fill: Option<&str>) -> Result<Option<i64>> {
        let Some(fill) = fill else { return Ok(None) };
        self.id(fill).map(Some).ok_or_else(|| {
            Error::config(format!(
                "missing values of `{column}` are to be `{fill}`, which is none of its categories: add it to \
                 them, or use Categories::with_unknown"
            ))
        })
    }
}
