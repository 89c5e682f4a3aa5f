use super::{DataLoader, Loading, SharedDataset};
use crate::{Error, Result, precision::Policy};

/// What a model is trained and validated on.
#[derive(Debug, Clone)]
pub struct DataModule {
    /// The data's name.
    pub name: String,
    /// Training examples.
    pub train: SharedDataset,
    /// Validation examples.
    pub val: SharedDataset,
    /// Examples in a batch.
    pub batch_size: i64,
    /// How batches reach the device.
    pub loading: Loading,
}

impl DataModule {
    /// Two datasets, or two [`Batch`](super::Batch)es in memory, loaded as [`Loading::default`]
    /// has it.
    pub fn new(
        name: impl Into<String>,
        train: impl Into<SharedDataset>,
        val: impl Into<SharedDataset>,
        batch_size: i64,
    ) -> Self {
        Self {
            name: name.into(),
            train: train.into(),
            val: val.into(),
            batch_size,
            loading: Loading::default(),
        }
    }

    /// Refuses what cannot be batched.
    ///
    /// # Errors
    /// When the batch size is not positive or larger than the training set, or a set is empty.
    pub fn check(&self) -> Result<()> {
        let (batch, train, val) = (self.batch_size, self.train.len(), self.val.len());
        if batch < 1 {
            return Err(Error::config(format!("batch size {batch}: it must be at least 1")));
        }
        if batch > train {
            return Err(Error::config(format!(
                "batch size {batch} is larger than the {train} training examples of `{}`: choose at most {train}",
                self.name
            )));
        }
        if val == 0 {
            return Err(Error::config(format!("`{}` has no validation examples", self.name)));
        }
        self.loading.check()
    }

    /// The training batches, in an order of this seed's where there is one.
    ///
    /// # Errors
    /// When they cannot be batched, or the device has no room for a set that is to lie there.
    pub fn train_loader(&self, policy: Policy, shuffle: Option<u64>) -> Result<DataLoader> {
        let loader = DataLoader::new(&self.train, self.batch_size, self.loading, policy)?;
        Ok(match shuffle {
            Some(seed) => loader.shuffled(seed),
            None => loader,
        })
    }

    /// The validation batches: in order, and every example, whatever `drop_last` says.
    ///
    /// # Errors
    /// As [`DataModule::train_loader`].
    pub fn val_loader(&self, policy: Policy) -> Result<DataLoader> {
        let loading = Loading { drop_last: false, ..self.loading };
        DataLoader::new(&self.val, self.batch_size, loading, policy)
    }

    /// The same data with the first `batches` batches of each set alone.
    ///
    /// # Errors
    /// When a dataset fails.
    pub fn head(&self, batches: i64) -> Result<Self> {
        let count = batches * self.batch_size;
        Ok(Self {
            train: self.train.head(count)?.into(),
            val: self.val.head(count)?.into(),
            ..self.clone()
        })
    }
}
