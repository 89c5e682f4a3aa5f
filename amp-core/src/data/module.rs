use std::collections::HashSet;

use super::{
    DataLoader, Loading, Order, Sets, SharedDataset,
    sampler::{Epoch, checked_order},
};
use crate::{Error, Result, precision::Policy};

/// The data sets for training, validation, test and prediction.
///
/// ```no_run,standalone_crate
/// use amp_core::{Result, data::{Batch, DataModule}, tch::{Device, Kind, Tensor}};
///
/// fn examples(count: i64) -> Result<Batch> {
///     let input = Tensor::f_randn([count, 8], (Kind::Float, Device::Cpu))?;
///     let target = input.f_argmax(1, false)?;
///     Batch::new(input, target)
/// }
///
/// # fn main() -> Result<()> {
/// let data = DataModule::new("largest", examples(512)?, examples(128)?, 32)
///     .with_val("more", examples(64)?)
///     .with_test(examples(128)?);
/// assert_eq!(data.val.examples(), 192);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct DataModule {
    /// The data's name.
    pub name: String,
    /// Training examples.
    pub train: SharedDataset,
    /// The validation sets, which `fit` and `validate` use. There may be none.
    pub val: Sets,
    /// The test sets, which `test` uses.
    pub test: Sets,
    /// The sets for which `predict` computes predictions.
    pub predict: Sets,
    /// The number of examples in a batch.
    pub batch_size: i64,
    /// The order of the training examples. By default the examples are shuffled in each epoch.
    pub order: Order,
    /// How examples are read, and how batches are moved to the device.
    pub loading: Loading,
}

impl DataModule {
    /// Creates a data module from a training set and a validation set. Each may be a dataset or a
    /// batch in memory. The sets are loaded with [`Loading::default`].
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::prelude::*;
    ///
    /// let batch = |count: i64| {
    ///     let input = Tensor::f_randn([count, 8], (Kind::Float, Device::Cpu))?;
    ///     Batch::new(input, Tensor::f_zeros([count], (Kind::Int64, Device::Cpu))?)
    /// };
    /// let data = DataModule::new("noise", batch(80)?, batch(20)?, 16);
    /// assert_eq!(data.batch_size, 16);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn new(
        name: impl Into<String>,
        train: impl Into<SharedDataset>,
        val: impl Into<SharedDataset>,
        batch_size: i64,
    ) -> Self {
        Self { val: Sets::one(val), ..Self::training(name, train, batch_size) }
    }

    /// Creates a data module that has a training set, but no sets for validation, test and
    /// prediction.
    pub fn training(
        name: impl Into<String>,
        train: impl Into<SharedDataset>,
        batch_size: i64,
    ) -> Self {
        Self {
            name: name.into(),
            train: train.into(),
            val: Sets::default(),
            test: Sets::default(),
            predict: Sets::default(),
            batch_size,
            order: Order::Shuffled,
            loading: Loading::default(),
        }
    }

    /// Adds a validation set with a name. The name is part of the names of the set's logged values,
    /// such as `val_loss/name`.
    #[must_use]
    pub fn with_val(mut self, name: impl Into<String>, set: impl Into<SharedDataset>) -> Self {
        self.val = self.val.and(name, set);
        self
    }

    /// Sets the test set, or several test sets.
    #[must_use]
    pub fn with_test(mut self, sets: impl Into<Sets>) -> Self {
        self.test = sets.into();
        self
    }

    /// Sets the set, or several sets, for which `predict` computes predictions.
    #[must_use]
    pub fn with_predict(mut self, sets: impl Into<Sets>) -> Self {
        self.predict = sets.into();
        self
    }

    /// Sets the order of the training examples: an [`Order`] or a sampler.
    #[must_use]
    pub fn with_order(mut self, order: impl Into<Order>) -> Self {
        self.order = order.into();
        self
    }

    /// Trains on the examples in the order in which the set stores them.
    #[must_use]
    pub fn in_order(self) -> Self {
        self.with_order(Order::InOrder)
    }

    /// Checks that the data can be split into batches.
    ///
    /// # Errors
    /// When the batch size is not positive or is larger than the training set. When a set is empty,
    /// or its examples do not form a batch. When two sets for the same loop, such as two validation
    /// sets, have the same name.
    pub fn check(&self) -> Result<()> {
        let (name, batch, train) = (&self.name, self.batch_size, self.train.len());
        if batch < 1 {
            return Err(Error::config(format!("batch size {batch}: it must be at least 1")));
        }
        self.train.check()?;
        if train == 0 {
            return Err(Error::config(format!("`{name}` has no training examples")));
        }
        if let Order::Sampled(sampler) = &self.order {
            let drawn = sampler.len(train);
            if batch > drawn {
                return Err(Error::config(format!(
                    "batch size {batch} is larger than the {drawn} examples that the sampler `{}` draws of \
                     `{name}`: choose at most {drawn}",
                    sampler.name()
                )));
            }
        } else if batch > train {
            return Err(Error::config(format!(
                "batch size {batch} is larger than the {train} training examples of `{name}`: choose at most {train}"
            )));
        }
        for (kind, sets) in
            [("validation", &self.val), ("test", &self.test), ("prediction", &self.predict)]
        {
            let mut names = HashSet::new();
            for (set, data) in sets.iter() {
                data.check()?;
                let called = if set.is_empty() { "" } else { &format!(" in the set `{set}`") };
                if data.is_empty() {
                    return Err(Error::config(format!("`{name}` has no {kind} examples{called}")));
                }
                if !names.insert(set) {
                    return Err(Error::config(format!(
                        "two {kind} sets of `{name}` are called `{set}`: give each its own name"
                    )));
                }
            }
        }
        self.loading.check()
    }

    /// Returns the loader of the training set, in the order that this module declares. `seed` is
    /// the seed of that order.
    ///
    /// # Errors
    /// When the training set cannot be split into batches. When the set is to be stored on the
    /// device and does not fit into the device's memory.
    pub fn train_loader(&self, policy: Policy, seed: u64) -> Result<DataLoader> {
        let loader = DataLoader::new(&self.train, self.batch_size, self.loading, policy)?;
        loader.ordered(self.order.clone(), seed)
    }

    /// Returns the indices of the training examples that the first epoch reads, in ascending order
    /// and each once. Returns `None` if it reads all of them, because no sampler selects some.
    /// `seed` is the seed of the order.
    ///
    /// # Errors
    /// When the sampler does not fit the training set.
    pub fn trained_on(&self, seed: u64) -> Result<Option<Vec<i64>>> {
        let Order::Sampled(sampler) = &self.order else { return Ok(None) };
        let (examples, batch_size) = (self.train.len(), self.batch_size);
        let mut read = checked_order(sampler, &Epoch { seed, epoch: 0, examples, batch_size })?;
        read.sort_unstable();
        read.dedup();
        Ok(Some(read))
    }

    /// Returns the loader of a set that is not used for training. It returns all examples in the
    /// order of the set, even if `drop_last` is set.
    ///
    /// # Errors
    /// When the set cannot be split into batches. When the set is to be stored on the device and
    /// does not fit into the device's memory.
    pub fn loader(&self, set: &SharedDataset, policy: Policy) -> Result<DataLoader> {
        let loading = Loading { drop_last: false, ..self.loading };
        DataLoader::new(set, self.batch_size, loading, policy)
    }

    /// Returns the number of bytes of the copies of the training set and of the validation sets that
    /// a run keeps on the device. A set has no copy if it is read batch by batch, or if it is
    /// already on the device in the precision's dtype.
    ///
    /// # Errors
    /// The errors of [`train_loader`](Self::train_loader) and [`loader`](Self::loader).
    pub fn copied_bytes(&self, policy: Policy) -> Result<u64> {
        let mut bytes = self.train_loader(policy, 0)?.copied_bytes();
        for (_, set) in self.val.iter() {
            bytes += self.loader(set, policy)?.copied_bytes();
        }
        Ok(bytes)
    }

    /// Returns a data module with only the first `batches` batches of each set. If a sampler
    /// determines the order of the training examples, [`Order::Shuffled`] replaces it, because the
    /// sampler was made for the complete set.
    ///
    /// # Errors
    /// When the first examples of a dataset cannot be read.
    pub fn head(&self, batches: i64) -> Result<Self> {
        let count = batches * self.batch_size;
        let head = |sets: &Sets| {
            let mut cut = Sets::default();
            for (name, set) in sets.iter() {
                cut = cut.and(name, set.first_only(count)?);
            }
            Ok::<_, Error>(cut)
        };
        Ok(Self {
            train: self.train.first_only(count)?,
            val: head(&self.val)?,
            test: head(&self.test)?,
            predict: head(&self.predict)?,
            order: match self.order {
                Order::InOrder => Order::InOrder,
                Order::Shuffled | Order::Sampled(_) => Order::Shuffled,
            },
            ..self.clone()
        })
    }
}
