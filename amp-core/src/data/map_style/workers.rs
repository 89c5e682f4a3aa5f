//! Worker threads that read a map-style set. Each thread makes whole batches. The batches are
//! returned in the sampler's order.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use super::{AnyMapDataset, Watch};
use crate::{
    Error, Result,
    data::{AnyBatch, prefetch::caught},
    ffi,
    precision::Policy,
    random::{self, Draws},
};

/// The batches of an epoch, on the CPU. Worker threads make the batches. Dropping this iterator
/// ends the threads.
pub(in crate::data) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Whether the iterator has ended: all batches were returned, or a batch failed.
    over: bool,
}

/// The data that the worker threads and the iterator share.
struct Shared {
    work: Work,
    queue: Mutex<Queue>,
    changed: Condvar,
    watch: Watch,
    /// How many batches may be begun but not yet returned. When there are so many, the threads
    /// begin no further batch.
    ahead: u64,
}

struct Work {
    data: Arc<dyn AnyMapDataset>,
    draws: Draws,
    policy: Policy,
}

struct Queue {
    /// The indices of the examples of each batch that no thread has begun yet.
    indices: Box<dyn Iterator<Item = Vec<i64>> + Send>,
    /// The number of batches that the threads have begun.
    begun: u64,
    /// The number of batches that were returned.
    given: u64,
    /// The finished batches that were not yet returned, by their position in `indices`.
    ready: BTreeMap<u64, Result<AnyBatch>>,
    /// The number of threads that may still finish a batch.
    alive: usize,
    /// Whether no thread may begin another batch.
    stopped: bool,
}

impl Workers {
    /// Starts `count` threads that make the batches of `indices`, in the policy's dtypes. The
    /// threads are at most `ahead` batches ahead of the caller.
    pub(in crate::data) fn start(
        data: Arc<dyn AnyMapDataset>,
        draws: Draws,
        indices: impl Iterator<Item = Vec<i64>> + Send + 'static,
        policy: Policy,
        count: usize,
        ahead: usize,
    ) -> Result<Self> {
        let queue = Queue {
            indices: Box::new(indices),
            begun: 0,
            given: 0,
            ready: BTreeMap::new(),
            alive: 0,
            stopped: false,
        };
        let shared = Arc::new(Shared {
            work: Work { data, draws, policy },
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            watch: Watch::default(),
            ahead: ahead.max(1) as u64,
        });
        let mut workers = Self { shared, threads: Vec::with_capacity(count), over: false };
        for number in 0..count {
            let shared = workers.shared.clone();
            let (context, inherited) = (ffi::DebugInfo::current()?, random::Inherited::current());
            shared.queue().alive += 1;
            let living = Living(shared.clone());
            let body = move || {
                let living = living;
                // The training loop may hold the lock of `random::seeded` while it waits for this
                // thread. With this guard, this thread never waits for that lock. Without it, each
                // of the two could wait for the other.
                let _guest = inherited.enter();
                let _no_grad = tch::no_grad_guard();
                match context.enter() {
                    Ok(()) => while living.0.make_one() {},
                    Err(error) => living.0.refuse(error),
                }
            };
            let thread = thread::Builder::new().name(format!("data worker {number}")).spawn(body);
            let thread = thread.map_err(|error| {
                Error::Thread(format!("cannot start a thread to load data: {error}"))
            })?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }
}

impl Iterator for Workers {
    type Item = Result<AnyBatch>;

    fn next(&mut self) -> Option<Result<AnyBatch>> {
        if self.over {
            return None;
        }
        let batch = self.shared.take();
        self.over = batch.as_ref().is_none_or(Result::is_err);
        batch
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.watch.stop();
        self.shared.queue().stopped = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // The thread catches panics of the data set, so joining it cannot fail.
            let _ = thread.join();
        }
    }
}

/// A guard. While it exists, [`Queue::alive`] counts the thread that holds it.
struct Living(Arc<Shared>);

impl Drop for Living {
    fn drop(&mut self) {
        self.0.queue().alive -= 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is consistent even if a thread panicked while it held the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the next batch in the sampler's order is ready, and returns it.
    fn take(&self) -> Option<Result<AnyBatch>> {
        let waits = |queue: &mut Queue| queue.alive > 0 && !queue.ready.contains_key(&queue.given);
        let queue = self.changed.wait_while(self.queue(), waits);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        let given = queue.given;
        match queue.ready.remove(&given) {
            Some(batch) => {
                queue.given += 1;
                drop(queue);
                self.changed.notify_all();
                Some(batch)
            }
            None if given < queue.begun => Some(Err(Error::Thread(
                "a data worker ended before it finished its batch".to_owned(),
            ))),
            None => None,
        }
    }

    /// Waits until the queue has room for a batch, and makes that batch. Returns false if no batch
    /// is left.
    fn make_one(&self) -> bool {
        let full = |queue: &mut Queue| {
            !queue.stopped && queue.begun >= queue.given.saturating_add(self.ahead)
        };
        let queue = self.changed.wait_while(self.queue(), full);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        if queue.stopped {
            return false;
        }
        let Some(indices) = queue.indices.next() else { return false };
        let place = queue.begun;
        queue.begun += 1;
        drop(queue);
        let Work { data, draws, policy } = &self.work;
        let batch = caught(|| {
            let batch = data.gather(&indices, *draws, &self.watch)?;
            counted(batch, indices.len(), "collate")?.place(*policy)
        });
        let mut queue = self.queue();
        // After an error the threads begin no further batch. Each thread still finishes the batch
        // that it has begun. In the sampler's order, this batch may come before the failed batch.
        queue.stopped |= batch.is_err();
        queue.ready.insert(place, batch);
        drop(queue);
        self.changed.notify_all();
        true
    }

    /// Puts an error into the queue in place of the next batch.
    fn refuse(&self, error: Error) {
        let mut queue = self.queue();
        queue.stopped = true;
        let place = queue.begun;
        queue.begun += 1;
        queue.ready.insert(place, Err(error));
    }
}

/// Returns the batch if it has `asked` examples, otherwise an error. `method` is the method of the
/// data set that made the batch; the error names it.
pub(in crate::data) fn counted(batch: AnyBatch, asked: usize, method: &str) -> Result<AnyBatch> {
    let (asked, given) = (asked as i64, batch.len());
    if asked == given {
        return Ok(batch);
    }
    Err(Error::config(format!(
        "the dataset gave {given} examples for {asked} indices: `{method}` must give one for each \
         index"
    )))
}
