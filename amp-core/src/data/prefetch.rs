//! A thread that reads batches ahead of the training loop and moves them to the device.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use tch::Device;

use super::{AnyBatch, SharedDataset};
use crate::{
    Error, Result, ffi,
    precision::Policy,
    random::{self, Draws},
};

/// The batches of an epoch. A thread reads them ahead of the training loop. Dropping this iterator
/// ends the thread.
pub(super) struct Prefetch {
    /// `None` when no further batch will arrive.
    receiver: Option<Receiver<Result<Loaded>>>,
    worker: Option<JoinHandle<()>>,
}

/// A batch that the loading thread has made.
enum Loaded {
    Placed(AnyBatch),
    /// The batch on the host, and the copy of its tensors to the device. The copy may still be
    /// running.
    Copying(AnyBatch, ffi::DeviceCopy),
}

impl Prefetch {
    /// Starts a thread that takes `batches` from the iterator and moves them to the device. The
    /// thread is at most `ahead` batches ahead of the training loop.
    pub(super) fn start(
        batches: impl Iterator<Item = Result<AnyBatch>> + Send + 'static,
        policy: Policy,
        ahead: usize,
    ) -> Result<Self> {
        // The thread keeps one finished batch while it waits for room in the channel. The channel
        // therefore has room for one batch less than `ahead`.
        let (sender, receiver) = sync_channel(ahead.saturating_sub(1));
        let context = ffi::DebugInfo::current()?;
        let inherited = random::Inherited::current();
        let body = move || {
            // The training loop may hold the lock of `random::seeded` while it waits for this
            // thread. With this guard, this thread never waits for that lock. Without it, each of
            // the two could wait for the other.
            let _guest = inherited.enter();
            let loaded = context.enter().and_then(|()| {
                let stream = match policy.device {
                    Device::Cuda(index) => Some(ffi::SideStream::new(index)?),
                    _ => None,
                };
                Ok(Worker { policy, stream })
            });
            match loaded {
                Ok(worker) => worker.run(batches, &sender),
                // Sending fails only if the receiver no longer exists.
                Err(error) => drop(sender.send(Err(error))),
            }
        };
        let worker =
            thread::Builder::new().name("data loader".into()).spawn(body).map_err(|error| {
                Error::Thread(format!("cannot start a thread to load data: {error}"))
            })?;
        Ok(Self { receiver: Some(receiver), worker: Some(worker) })
    }
}

impl Iterator for Prefetch {
    type Item = Result<AnyBatch>;

    fn next(&mut self) -> Option<Result<AnyBatch>> {
        let loaded = self.receiver.as_ref()?.recv().ok()?;
        let batch = loaded.and_then(|loaded| match loaded {
            Loaded::Placed(batch) => Ok(batch),
            Loaded::Copying(batch, copy) => Ok(batch.with_tensors(copy.arrive()?)),
        });
        if batch.is_err() {
            self.receiver = None;
        }
        Some(batch)
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // The receiver is dropped first. A thread that waits for room in the channel then ends.
        self.receiver = None;
        if let Some(worker) = self.worker.take() {
            // The thread catches panics and sends them as errors, so joining it cannot fail.
            let _ = worker.join();
        }
    }
}

/// Reads the examples at `indices` on a separate thread. Stores in `data` whether the set took
/// random numbers from libtorch's generator. Waits for the thread, so that no other code of the run
/// uses the generator at the same time.
pub(super) fn watched(data: &SharedDataset, draws: Draws, indices: &[i64]) -> Result<AnyBatch> {
    let (context, inherited) = (ffi::DebugInfo::current()?, random::Inherited::current());
    let gather = move || {
        let _guest = inherited.enter();
        let _no_grad = tch::no_grad_guard();
        context.enter()?;
        let first = indices.first().copied().unwrap_or_default();
        draws.watched(first, || caught(|| data.gather_drawing(indices, draws)))
    };
    let gathered = thread::scope(|scope| scope.spawn(gather).join());
    let (batch, drew) = gathered.unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
    data.note_draws(drew);
    batch
}

/// The policy and the CUDA stream with which the loading thread moves batches to the device.
struct Worker {
    policy: Policy,
    stream: Option<ffi::SideStream>,
}

impl Worker {
    fn run(
        &self,
        mut batches: impl Iterator<Item = Result<AnyBatch>>,
        sender: &SyncSender<Result<Loaded>>,
    ) {
        let _no_grad = tch::no_grad_guard();
        while let Some(loaded) =
            caught(|| batches.next().map(|batch| self.load(batch?)).transpose()).transpose()
        {
            let failed = loaded.is_err();
            if sender.send(loaded).is_err() || failed {
                return;
            }
        }
    }

    fn load(&self, batch: AnyBatch) -> Result<Loaded> {
        match self.stream {
            Some(stream) if batch.is_on(Device::Cpu) => {
                // The batch is cast to the precision's dtype before the copy to the device, because
                // an f16 batch has only half as many bytes as an f32 batch.
                let batch = batch.place(Policy::new(self.policy.precision, Device::Cpu))?;
                let copy = stream.copy(batch.tensors().map(|(_, tensor)| tensor))?;
                Ok(Loaded::Copying(batch, copy))
            }
            _ => Ok(Loaded::Placed(batch.place(self.policy)?)),
        }
    }
}

/// Calls `load`, which reads from a data set. A panic in the data set's code becomes an
/// [`Error::Data`].
pub(super) fn caught<T>(load: impl FnOnce() -> Result<T>) -> Result<T> {
    let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|payload| {
        let reason = panic_text(payload.as_ref());
        Err(Error::Data(format!("the dataset panicked: {reason}")))
    });
    loaded.map_err(Error::of_data_set)
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
