//! Datasets in memory and the loader that cuts them into batches.

use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    precision::{Policy, is_floating},
};

/// Some examples: inputs and their targets, equal in dimension 0.
#[derive(Debug)]
pub struct Batch {
    /// `[N, …]`.
    pub input: Tensor,
    /// `[N, …]`.
    pub target: Tensor,
}

impl Batch {
    /// Pairs inputs with targets.
    ///
    /// # Errors
    /// When their numbers differ.
    pub fn new(input: Tensor, target: Tensor) -> Result<Self> {
        let count = |tensor: &Tensor| tensor.size().first().copied().unwrap_or(0);
        let (inputs, targets) = (count(&input), count(&target));
        if inputs != targets {
            return Err(Error::config(format!("{inputs} inputs, but {targets} targets")));
        }
        Ok(Self { input, target })
    }

    /// Number of examples.
    #[expect(clippy::len_without_is_empty, reason = "a batch has examples")]
    pub fn len(&self) -> i64 {
        self.input.size().first().copied().unwrap_or(0)
    }

    /// The examples on the policy's device, floating inputs in its dtype.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn place(&self, policy: Policy) -> Result<Self> {
        let place = |tensor: &Tensor| -> Result<Tensor> {
            let kind = match tensor.kind() {
                kind if is_floating(kind) => policy.precision.storage(),
                kind => kind,
            };
            Ok(tensor.f_to_device_(policy.device, kind, false, false)?)
        };
        Ok(Self { input: place(&self.input)?, target: place(&self.target)? })
    }

    /// The examples at these places, given as int64 on the batch's device.
    fn select(&self, index: &Tensor) -> Result<Self> {
        let (input, target) =
            (self.input.f_index_select(0, index)?, self.target.f_index_select(0, index)?);
        Ok(Self { input, target })
    }

    fn narrow(&self, start: i64, length: i64) -> Result<Self> {
        let (input, target) =
            (self.input.f_narrow(0, start, length)?, self.target.f_narrow(0, start, length)?);
        Ok(Self { input, target })
    }
}

/// What a model is trained and validated on.
#[derive(Debug)]
pub struct DataModule {
    /// The data's name.
    pub name: String,
    /// Training examples.
    pub train: Batch,
    /// Validation examples.
    pub val: Batch,
    /// Examples in a batch.
    pub batch_size: i64,
}

impl DataModule {
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
        Ok(())
    }
}

/// Cuts a dataset into batches, all on the dataset's device.
#[derive(Debug)]
pub struct DataLoader<'a> {
    data: &'a Batch,
    batch_size: i64,
    shuffle: Option<u64>,
}

impl<'a> DataLoader<'a> {
    /// Batches in order; the last one may be smaller.
    pub fn new(data: &'a Batch, batch_size: i64) -> Self {
        Self { data, batch_size, shuffle: None }
    }

    /// Batches of a permutation that depends on the seed and the epoch alone, whatever the
    /// device and precision.
    #[must_use]
    pub fn shuffled(mut self, seed: u64) -> Self {
        self.shuffle = Some(seed);
        self
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> i64 {
        (self.data.len() + self.batch_size - 1) / self.batch_size
    }

    /// Examples of the batch at `index`.
    pub fn batch_len(&self, index: i64) -> i64 {
        self.batch_size.min(self.data.len() - index * self.batch_size)
    }

    /// The batches of one epoch, from the one at `first` on.
    ///
    /// # Errors
    /// When the device has no room for the permutation; the iterator's items fail likewise.
    pub fn epoch(&self, epoch: u64, first: i64) -> Result<impl Iterator<Item = Result<Batch>>> {
        let device = self.data.input.device();
        let order = self.shuffle.map(|seed| permutation(self.data.len(), seed, epoch, device));
        let order = order.transpose()?;
        Ok((first..self.batches()).map(move |index| {
            let (start, length) = (index * self.batch_size, self.batch_len(index));
            match &order {
                Some(order) => self.data.select(&order.f_narrow(0, start, length)?),
                None => self.data.narrow(start, length),
            }
        }))
    }
}

fn permutation(count: i64, seed: u64, epoch: u64, device: Device) -> Result<Tensor> {
    // Two generators, so that (seed, epoch) and (seed + 1, epoch - 1) have nothing in common.
    let mut rng = fastrand::Rng::with_seed(fastrand::Rng::with_seed(seed).u64(..) ^ epoch);
    let mut order: Vec<i64> = (0..count).collect();
    rng.shuffle(&mut order);
    Ok(Tensor::f_from_slice(&order)?.f_to_device_(device, Kind::Int64, false, false)?)
}
