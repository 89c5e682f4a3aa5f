use std::sync::Arc;

use tch::{Device, Tensor};

use super::{
    AnyBatch, Limit, Loading, SharedDataset,
    map_style::Workers,
    prefetch::{Prefetch, caught, watched},
    sampler::{Epoch, Order, checked_order},
    transformed::Transforms,
};
use crate::{Error, Result, precision::Policy, random::Draws, state::State};

/// Splits a dataset into batches, moves the batches to the device of a [`Policy`] and casts them to
/// its dtype.
///
/// The batches of an epoch depend only on the dataset, the seed and the index of the epoch. A
/// resumed run therefore needs only the indices of the epoch and of the next batch to continue with
/// the same batches.
#[derive(Debug)]
pub struct DataLoader {
    source: Source,
    /// The number of examples of the set.
    examples: i64,
    /// The number of examples that one epoch reads.
    len: i64,
    /// The number of bytes of the loader's copy of the set on the device. Tensors that share memory
    /// with the set itself are not counted.
    copied: u64,
    batch_size: i64,
    drop_last: bool,
    limit: Limit,
    /// Whether each epoch of a stream begins at the stream's beginning, and not where the previous
    /// epoch ended.
    repeats: bool,
    order: Order,
    /// The seed from which the order of the examples is computed.
    order_seed: u64,
    /// The seed of the random numbers that the set itself uses.
    seed: u64,
    policy: Policy,
    /// The transforms that are applied to batches on the device.
    transforms: Transforms,
}

#[derive(Debug)]
enum Source {
    /// The whole set is on the device.
    Resident(AnyBatch),
    Host {
        data: SharedDataset,
        prefetch: usize,
        /// The number of threads that read examples, and the number of batches that the threads
        /// together may read ahead. `None` if the set is read without worker threads.
        workers: Option<(usize, usize)>,
    },
}

impl DataLoader {
    /// Creates a loader that returns the examples in the set's order. The last batch may be smaller
    /// than the others.
    ///
    /// # Errors
    /// When the set cannot be split into batches of this size, or when the set is to be stored on
    /// the device and does not fit into the device's memory.
    pub fn new(
        data: &SharedDataset,
        batch_size: i64,
        loading: Loading,
        policy: Policy,
    ) -> Result<Self> {
        loading.check()?;
        if batch_size < 1 {
            return Err(Error::config(format!("batch size {batch_size}: it must be at least 1")));
        }
        let examples = data.len();
        let len = examples;
        if loading.drop_last && batch_size > len {
            return Err(Error::config(format!(
                "drop_last leaves no batch, because {len} examples do not fill a batch of {batch_size}: \
                 choose a batch size of at most {len}"
            )));
        }
        let transforms = data.transforms();
        let source = match loading.resident(data, transforms.placing(policy))? {
            Some(all) => Source::Resident(all.noting_ignored()?),
            None => {
                let prefetch = loading.prefetch_for(policy.device);
                let workers = (loading.num_workers > 0)
                    .then_some((loading.num_workers, loading.ahead_of_workers()));
                Source::Host { data: data.clone(), prefetch, workers }
            }
        };
        let copied = match &source {
            Source::Resident(all) => all.bytes_not_shared_with(data.in_memory()?.as_ref()),
            Source::Host { .. } => 0,
        };
        let drop_last = loading.drop_last;
        let (limit, order) = (Limit::default(), Order::InOrder);
        let (order_seed, seed) = (0, 0);
        Ok(Self {
            source,
            examples,
            len,
            copied,
            batch_size,
            drop_last,
            limit,
            repeats: false,
            order,
            order_seed,
            seed,
            policy,
            transforms,
        })
    }

    /// Shuffles the examples in each epoch. The permutation depends only on the seed and the epoch,
    /// not on the device or the precision ([`Order::Shuffled`]). A stream is not shuffled.
    #[must_use]
    pub fn shuffled(mut self, seed: u64) -> Self {
        self.len = self.examples;
        (self.order, self.order_seed) = (Order::Shuffled, seed);
        if self.is_stream() {
            self.order = Order::InOrder;
        }
        self
    }

    /// Sets the order of the examples. `order` is an [`Order`] or a sampler. `seed` is the seed for
    /// the shuffling or for the sampler.
    ///
    /// # Errors
    /// When the sampler returns too few examples for one batch, or the set is a stream.
    pub fn ordered(mut self, order: impl Into<Order>, seed: u64) -> Result<Self> {
        let order = order.into();
        let Order::Sampled(sampler) = &order else {
            return Ok(match order {
                Order::Shuffled => self.shuffled(seed),
                _ => Self { len: self.examples, order, order_seed: seed, ..self },
            });
        };
        if self.is_stream() {
            return Err(Error::config(format!(
                "a stream cannot be read in the order of a sampler, but the sampler `{}` is set: leave it out",
                sampler.name()
            )));
        }
        self.len = sampler.len(self.examples);
        let least = if self.drop_last { self.batch_size } else { 1 };
        if self.len < least {
            let (name, len) = (sampler.name(), self.len);
            return Err(Error::config(format!(
                "the sampler `{name}` draws {len} examples in an epoch, but a batch needs at least \
                 {least}"
            )));
        }
        (self.order, self.order_seed) = (order, seed);
        Ok(self)
    }

    /// Sets the seed of the random numbers that the set uses in
    /// [`gather_drawing`](super::Dataset::gather_drawing).
    #[must_use]
    pub fn drawing(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Uses only the first batches of each epoch, as many as `limit` allows.
    #[must_use]
    pub fn limited(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }

    /// Begins each epoch of a stream at the stream's beginning, and not where the previous epoch
    /// ended. Other sets are not affected.
    #[must_use]
    pub(crate) fn repeating(mut self) -> Self {
        self.repeats = true;
        self
    }

    /// Returns whether the whole set is on the device.
    pub fn is_resident(&self) -> bool {
        matches!(self.source, Source::Resident(_))
    }

    /// Returns the number of bytes of the copy of the set that the loader keeps on the device.
    pub(super) fn copied_bytes(&self) -> u64 {
        self.copied
    }

    /// Returns the number of bytes of the tensors that the loader itself keeps on the device: the
    /// copy of the set, and the order of an epoch's examples.
    pub(crate) fn held_bytes(&self) -> u64 {
        match (&self.source, self.order.sampler()) {
            (Source::Resident(_), Some(_)) => self.copied + 8 * self.len as u64,
            _ => self.copied,
        }
    }

    fn is_stream(&self) -> bool {
        matches!(&self.source, Source::Host { data, .. } if data.is_stream())
    }

    /// Returns the position in the stream, counted from 0, of the batch's first example.
    fn stream_number(&self, epoch: u64, batch: i64) -> i64 {
        let read = |batches: i64| (batches * self.batch_size).min(self.len);
        let before = if self.repeats { 0 } else { epoch.cast_signed() * read(self.batches()) };
        before + read(batch)
    }

    /// Returns the state of a stream before this batch. Returns `None` if the set is not a stream.
    pub(crate) fn stream_state(&self, epoch: u64, batch: i64) -> Result<Option<State>> {
        match &self.source {
            Source::Resident(_) => Ok(None),
            Source::Host { data, .. } => data.stream_state(self.stream_number(epoch, batch)),
        }
    }

    /// Sets the position of a stream to the start of a batch. `state` is the stream's state at this
    /// position. If `state` is `None`, the stream starts from its beginning.
    pub(crate) fn set_stream(&self, epoch: u64, batch: i64, state: Option<State>) -> Result<()> {
        match &self.source {
            Source::Resident(_) => Ok(()),
            Source::Host { data, .. } => data.set_stream(self.stream_number(epoch, batch), state),
        }
    }

    /// Returns the number of batches in an epoch.
    pub fn batches(&self) -> i64 {
        self.batches_under(self.limit)
    }

    /// Returns the number of batches in an epoch if `limit` replaces the loader's limit.
    pub fn batches_under(&self, limit: Limit) -> i64 {
        let rounded = if self.drop_last { self.len } else { self.len + self.batch_size - 1 };
        limit.of(rounded / self.batch_size)
    }

    /// Returns the number of examples of the batch at `index`.
    pub fn batch_len(&self, index: i64) -> i64 {
        self.batch_size.min(self.len - index * self.batch_size)
    }

    /// Returns the batches of one epoch, from the batch `first` on. The batches are on the policy's
    /// device, in the policy's dtype. After an error the iterator ends. Dropping the iterator ends
    /// the threads that read ahead.
    ///
    /// # Errors
    /// When an epoch has fewer than `first` batches, the device has not enough memory, or no thread
    /// can be started.
    pub fn epoch(&self, epoch: u64, first: i64) -> Result<Batches<'_>> {
        let order = self.order(epoch, first)?;
        let placed = self.placed(epoch, first, order.clone())?;
        if self.transforms.is_empty() {
            return Ok(placed);
        }
        let draws = Draws::new(self.seed, epoch);
        let changed = placed.zip(self.indices(epoch, first, order)).map(move |(batch, indices)| {
            self.transforms.apply(batch?, &indices, draws)?.place(self.policy)
        });
        Ok(Box::new(until_error(changed)))
    }

    /// Returns the indices of an epoch's examples in the order in which they are read. Returns
    /// `None` if the examples are read in the set's order.
    fn order(&self, epoch: u64, first: i64) -> Result<Option<Arc<[i64]>>> {
        let batches = self.batches();
        if !(0..=batches).contains(&first) {
            return Err(Error::config(format!(
                "cannot start at batch {first} of an epoch of {batches} batches: have the data or \
                 the batch size changed?"
            )));
        }
        Ok(self.order_of(epoch, self.batch_size)?.map(Arc::from))
    }

    /// Returns the indices of an epoch's examples in the order in which they are read with this
    /// batch size. Returns `None` if the examples are read in the set's order.
    fn order_of(&self, epoch: u64, batch_size: i64) -> Result<Option<Vec<i64>>> {
        let (seed, examples) = (self.order_seed, self.examples);
        let sampler = self.order.sampler();
        let epoch = Epoch { seed, epoch, examples, batch_size };
        sampler.map(|sampler| checked_order(sampler, &epoch)).transpose()
    }

    /// Returns whether the examples of an epoch have the same order with `batch_size` as with the
    /// loader's batch size.
    pub(crate) fn has_order_of(&self, epoch: u64, batch_size: i64) -> Result<bool> {
        Ok(self.order_of(epoch, batch_size)? == self.order_of(epoch, self.batch_size)?)
    }

    /// Returns two numbers for each batch from `first` on: the position of its first example in the
    /// epoch's order, and its number of examples.
    fn ranges(&self, first: i64) -> impl Iterator<Item = (i64, i64)> + Send + use<> {
        let (len, batch_size) = (self.len, self.batch_size);
        (first..self.batches()).map(move |index| {
            let start = index * batch_size;
            (start, batch_size.min(len - start))
        })
    }

    /// Returns the indices of the examples of each batch, from the batch `first` on.
    fn indices(
        &self,
        epoch: u64,
        first: i64,
        order: Option<Arc<[i64]>>,
    ) -> impl Iterator<Item = Vec<i64>> + Send + use<> {
        let before = if self.is_stream() { self.stream_number(epoch, 0) } else { 0 };
        self.ranges(first).map(move |(start, length)| match &order {
            Some(order) => order[start as usize..(start + length) as usize].to_vec(),
            None => (before + start..before + start + length).collect(),
        })
    }

    /// Returns the batches of an epoch on the device, without applying the batch transforms.
    fn placed(&self, epoch: u64, first: i64, order: Option<Arc<[i64]>>) -> Result<Batches<'_>> {
        let policy = self.transforms.placing(self.policy);
        match &self.source {
            Source::Resident(all) => {
                let order = order.map(|order| -> Result<Tensor> {
                    Ok(Tensor::f_from_slice(&order)?.f_to_device(policy.device)?)
                });
                let order = order.transpose()?;
                Ok(Box::new(self.ranges(first).map(move |(start, length)| match &order {
                    Some(order) => all.select(&order.f_narrow(0, start, length)?),
                    None => all.narrow(start, length),
                })))
            }
            Source::Host { data, prefetch, workers } => {
                let draws = Draws::new(self.seed, epoch);
                let mut indices = self.indices(epoch, first, order);
                let mut looked_at = None;
                if data.draws().is_none()
                    && let Some(indices) = indices.next()
                {
                    looked_at = Some(watched(data, draws, &indices).and_then(|b| b.place(policy)));
                }
                let draws_here = data.draws() == Some(true);
                if let Some(Err(error)) = looked_at {
                    return Ok(Box::new(std::iter::once(Err(error))));
                }
                let workers = workers.filter(|_| !draws_here);
                if let (Some(set), Some((count, ahead))) = (data.examples(), workers) {
                    let host = Policy::new(policy.precision, Device::Cpu);
                    let made = Workers::start(set, draws, indices, host, count, ahead)?;
                    let first = looked_at.into_iter();
                    if !policy.device.is_cuda() {
                        return Ok(Box::new(first.chain(made)));
                    }
                    let copied = Prefetch::start(made, policy, (*prefetch).max(1))?;
                    return Ok(Box::new(first.chain(copied)));
                }
                if *prefetch == 0 || draws_here {
                    let load = move |indices: Vec<i64>| -> Result<AnyBatch> {
                        let first = indices.first().copied().unwrap_or_default();
                        let gather = || caught(|| data.gather_drawing(&indices, draws));
                        match draws_here {
                            true => draws.apart(first, gather)??.place(policy),
                            false => gather()?.place(policy),
                        }
                    };
                    let batches = looked_at.into_iter().chain(indices.map(load));
                    return Ok(Box::new(until_error(batches)));
                }
                let data = data.clone();
                let gather = move |indices: Vec<i64>| data.gather_drawing(&indices, draws);
                let ahead = Prefetch::start(indices.map(gather), policy, *prefetch)?;
                Ok(Box::new(looked_at.into_iter().chain(ahead)))
            }
        }
    }
}

/// The iterator over the batches of an epoch.
type Batches<'l> = Box<dyn Iterator<Item = Result<AnyBatch>> + 'l>;

/// Returns the items up to and including the first error.
fn until_error<T>(mut items: impl Iterator<Item = Result<T>>) -> impl Iterator<Item = Result<T>> {
    let mut failed = false;
    std::iter::from_fn(move || {
        let item = if failed { None } else { items.next() };
        failed = item.as_ref().is_none_or(Result::is_err);
        item
    })
}
