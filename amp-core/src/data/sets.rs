use super::SharedDataset;

/// The data sets for one loop, such as validation, in the order in which the loop reads them. If a
/// set has a name, the name becomes part of the names of the logged values: `val_loss/rare` for the
/// set `rare`, and `val_loss` for a set without a name.
#[derive(Debug, Clone, Default)]
pub struct Sets(Vec<(String, SharedDataset)>);

impl Sets {
    /// Creates a list of one set without a name.
    pub fn one(set: impl Into<SharedDataset>) -> Self {
        Self(vec![(String::new(), set.into())])
    }

    /// Adds a set with a name at the end of the list.
    #[must_use]
    pub fn and(mut self, name: impl Into<String>, set: impl Into<SharedDataset>) -> Self {
        self.0.push((name.into(), set.into()));
        self
    }

    /// Returns each set with its name, which may be empty.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &SharedDataset)> {
        self.0.iter().map(|(name, set)| (name.as_str(), set))
    }

    /// Returns the first set.
    pub fn first(&self) -> Option<&SharedDataset> {
        self.0.first().map(|(_, set)| set)
    }

    /// Returns whether there is no set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of examples of all sets together.
    pub fn examples(&self) -> i64 {
        self.0.iter().map(|(_, set)| set.len()).sum()
    }
}

impl<S: Into<SharedDataset>> From<S> for Sets {
    fn from(set: S) -> Self {
        Self::one(set)
    }
}
