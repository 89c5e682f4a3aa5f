//! Data sets that are read in sequence.

use std::collections::BTreeMap;

use super::{AnyBatch, BatchField, Collate, SharedDataset, prefetch::caught};
use crate::{
    Error, Result,
    random::{Draws, Rng},
    state::State,
};

/// A data set that can only be read in sequence, for example from shards, a queue or a generator
/// (torch.utils.data.IterableDataset). Checkpoints contain the position in the stream, so a resumed
/// run continues with the next example. A stream is neither shuffled nor read in a sampler's order.
/// Only one thread reads it.
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     Result,
///     data::{Batch, DataModule, IterableDataset},
///     random::Rng,
///     state::State,
///     tch::Tensor,
/// };
///
/// /// The numbers from 0 on.
/// #[derive(Default)]
/// struct Numbers {
///     next: i64,
/// }
///
/// impl IterableDataset for Numbers {
///     type Example = Batch;
///
///     fn epoch_len(&self) -> i64 {
///         10_000
///     }
///
///     fn next(&mut self, _: &mut Rng) -> Result<Batch> {
///         self.next += 1;
///         let x = (self.next - 1) as f32;
///         Ok(Batch { input: Tensor::from_slice(&[x]), target: Tensor::from_slice(&[2.0 * x]) })
///     }
///
///     fn state(&self) -> Result<State> {
///         let mut state = State::default();
///         state.put("next", &self.next)?;
///         Ok(state)
///     }
///
///     fn load_state(&mut self, state: &State) -> Result<()> {
///         self.next = state.get("next")?;
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<()> {
/// let data = DataModule::training("numbers", Numbers::default().shared()?, 32);
/// # Ok(())
/// # }
/// ```
pub trait IterableDataset: Send {
    /// One example.
    type Example: BatchField;

    /// Returns the length of an epoch in examples. The next epoch continues with the examples that
    /// follow. Every call must return the same number.
    fn epoch_len(&self) -> i64;

    /// Returns the next example. After the last example, the stream continues with the first one.
    /// Take random numbers only from `rng`.
    ///
    /// # Errors
    /// When the example cannot be read.
    fn next(&mut self, rng: &mut Rng) -> Result<Self::Example>;

    /// Returns the position of the stream, so that [`load_state`](Self::load_state) can continue
    /// with the same examples. This method is called after each batch, and checkpoints contain its
    /// result, so the state must be small.
    ///
    /// # Errors
    /// When the position cannot be determined.
    fn state(&self) -> Result<State>;

    /// Moves the stream to a position that [`state`](Self::state) has returned for a stream of the
    /// same type.
    ///
    /// # Errors
    /// When the stream does not have the position that `state` describes.
    fn load_state(&mut self, state: &State) -> Result<()>;

    /// Combines examples into a batch. Each example comes with its position in the stream. The
    /// default implementation stacks the tensors of a field, which must have the same shape in all
    /// examples.
    ///
    /// # Errors
    /// When the examples do not fit together.
    fn collate(&self, examples: &[(i64, Self::Example)], rng: &mut Rng) -> Result<AnyBatch> {
        let _ = rng;
        Collate::new().batch(examples)
    }

    /// Converts the stream to the handle that a [`DataModule`](super::DataModule) takes.
    ///
    /// # Errors
    /// When the stream's state cannot be determined.
    fn shared(self) -> Result<SharedDataset>
    where
        Self: Sized + 'static,
    {
        SharedDataset::of_stream(self)
    }
}

/// A stream with examples of any type. Examples are numbered from 0 at the stream's beginning. The
/// numbers continue in the next epoch.
pub(super) trait AnyStream: Send {
    /// Returns the batch of the examples at `indices`, which are consecutive.
    fn gather(&mut self, indices: &[i64], draws: Draws) -> Result<AnyBatch>;
    /// Returns the state of the stream before the example with this number. The state is known only
    /// if the example is the next one or was the first of a recent batch.
    fn state_before(&self, number: i64) -> Result<State>;
    /// Moves the stream to `state` or, if `state` is `None`, to the stream's beginning. The next
    /// example gets this number.
    fn set(&mut self, number: i64, state: Option<State>) -> Result<()>;
}

/// The number of stream states that are kept. A checkpoint needs the state after the last batch on
/// which the model was trained. A prefetching thread may have read later batches, but far fewer
/// than this number.
const REMEMBERED: usize = 4096;

/// A state from which several copies can be made.
struct Kept(State);

impl Kept {
    const PART: &str = "stream";

    /// Stores a copy of the state, because the stream may overwrite the tensors of its state.
    fn of(state: State) -> Result<Self> {
        let mut kept = State::default();
        kept.put_part(Self::PART, state.copied()?);
        Ok(Self(kept))
    }

    fn state(&self) -> State {
        self.0.part(Self::PART)
    }
}

/// A stream, with the states that it had after each of the latest batches.
pub(super) struct Stream<D> {
    set: D,
    /// The number of the next example; `None` if the stream's position is not known.
    next: Option<i64>,
    first: Kept,
    /// The state of the stream before an example, by the example's number.
    states: BTreeMap<i64, Kept>,
}

impl<D: IterableDataset> Stream<D> {
    /// Creates the reader of a stream. The current position of `set` becomes the stream's
    /// beginning.
    pub(super) fn new(set: D) -> Result<Self> {
        let first = Kept::of(set.state()?)?;
        Ok(Self { set, next: Some(0), states: BTreeMap::new(), first })
    }

    fn known(&self, number: i64) -> Result<State> {
        let first = (number == 0).then_some(&self.first);
        self.states.get(&number).or(first).map(Kept::state).ok_or_else(|| {
            Error::config(format!(
                "the stream has no saved state of its example {number}: read its examples in order"
            ))
        })
    }

    fn read(&mut self, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        let start = indices.first().copied().unwrap_or_default();
        // If reading the batch fails, `next` stays `None`, so that the next call loads a state.
        if self.next.take() != Some(start) {
            let state = self.known(start)?;
            self.set.load_state(&state)?;
        }
        let mut examples = Vec::with_capacity(indices.len());
        for &index in indices {
            let example = caught(|| self.set.next(&mut draws.rng(index)));
            examples.push((index, example.map_err(|error| error.of_example(index))?));
        }
        let next = start + indices.len() as i64;
        self.states.insert(next, Kept::of(self.set.state()?)?);
        while self.states.len() > REMEMBERED {
            self.states.pop_first();
        }
        self.next = Some(next);
        self.set.collate(&examples, &mut draws.batch_rng(indices))
    }
}

impl<D: IterableDataset> AnyStream for Stream<D> {
    fn gather(&mut self, indices: &[i64], draws: Draws) -> Result<AnyBatch> {
        self.read(indices, draws)
    }

    fn state_before(&self, number: i64) -> Result<State> {
        self.known(number)
    }

    fn set(&mut self, number: i64, state: Option<State>) -> Result<()> {
        let state = state.unwrap_or_else(|| self.first.state());
        // This call numbers the examples anew, so the states that were stored under the old numbers
        // are removed.
        self.states.clear();
        self.states.insert(number, Kept::of(state)?);
        self.next = None;
        Ok(())
    }
}
