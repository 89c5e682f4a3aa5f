//! Writes checkpoints on a separate thread, so that training continues meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
};

use tch::{Device, Tensor};

use crate::{
    Error, Result, checkpoint,
    ffi::{CudaEvent, SideStream},
    memory::copy_of,
    state::State,
};

/// A copy of a run's weights and state at one moment, which later steps do not change.
pub(in crate::trainer) struct Snapshot {
    weights: Vec<(String, Tensor)>,
    state: Option<State>,
    text: BTreeMap<String, String>,
    /// On CUDA, an event that completes when the copies are done, and a second stream, which waits
    /// for the event and transfers the copies to the host. `None` on the CPU.
    ready: Option<(CudaEvent, SideStream)>,
}

impl Snapshot {
    /// Copies weights and state within the memory of the device, which takes less time than a copy
    /// to the host.
    pub(in crate::trainer) fn take(
        weights: Vec<(String, Tensor)>,
        state: Option<State>,
        text: BTreeMap<String, String>,
        device: Device,
    ) -> Result<Self> {
        let copied = |(name, tensor): (String, Tensor)| Ok((name, copy_of(&tensor)?));
        let weights = weights.into_iter().map(copied).collect::<Result<_>>()?;
        let state = state.map(State::copied).transpose()?;
        let ready = match device {
            Device::Cuda(index) => Some((CudaEvent::record(device)?, SideStream::new(index)?)),
            _ => None,
        };
        Ok(Self { weights, state, text, ready })
    }

    fn write(mut self, path: &Path) -> Result<()> {
        if let Some((ready, stream)) = self.ready.take() {
            let weights: Vec<&Tensor> = self.weights.iter().map(|(_, tensor)| tensor).collect();
            let host = stream.copies_to_host(&ready, &weights)?;
            for ((_, tensor), host) in self.weights.iter_mut().zip(host) {
                *tensor = host;
            }
            if let Some(state) = &mut self.state {
                state.replace_tensors(|tensors| stream.copies_to_host(&ready, tensors))?;
            }
        }
        checkpoint::write(path, &self.weights, self.state, self.text)
    }
}

enum Job {
    Write(PathBuf, Box<Snapshot>),
    Delete(PathBuf),
}

/// Writes and deletes checkpoints, in order, on a separate thread. After a failure, the thread
/// writes and deletes nothing more, so that the last good checkpoint remains.
#[derive(Default)]
pub(in crate::trainer) struct Writer {
    worker: Option<Worker>,
    /// The number of jobs (files to write or delete) whose outcome is not known yet.
    pending: usize,
}

struct Worker {
    jobs: Option<Sender<Job>>,
    outcomes: Receiver<Result<Option<PathBuf>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts to write a file. Only one file is written at a time, so this method first waits until
    /// the previous file is written. Returns the files written since the last call.
    pub(in crate::trainer) fn write(
        &mut self,
        path: &Path,
        snapshot: Snapshot,
    ) -> Result<Vec<PathBuf>> {
        let written = self.finish()?;
        self.send(Job::Write(path.to_owned(), Box::new(snapshot)))?;
        Ok(written)
    }

    /// Deletes a file after all files from earlier calls of [`write`](Self::write) are written. A
    /// missing file is not an error.
    pub(in crate::trainer) fn delete(&mut self, path: PathBuf) -> Result<()> {
        self.send(Job::Delete(path))
    }

    /// Returns the files written since the last call.
    ///
    /// # Errors
    /// When a file could not be written or deleted.
    pub(in crate::trainer) fn written(&mut self) -> Result<Vec<PathBuf>> {
        self.outcomes(|worker| worker.outcomes.try_recv().ok())
    }

    /// Waits until all files are written, and returns the files written since the last call.
    ///
    /// # Errors
    /// When a file could not be written or deleted.
    pub(in crate::trainer) fn finish(&mut self) -> Result<Vec<PathBuf>> {
        self.outcomes(|worker| worker.outcomes.recv().ok())
    }

    fn outcomes(
        &mut self,
        next: impl Fn(&Worker) -> Option<Result<Option<PathBuf>>>,
    ) -> Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        let Some(worker) = &self.worker else { return Ok(written) };
        while self.pending > 0
            && let Some(outcome) = next(worker)
        {
            self.pending -= 1;
            written.extend(outcome?);
        }
        Ok(written)
    }

    fn send(&mut self, job: Job) -> Result<()> {
        let worker = match &mut self.worker {
            Some(worker) => worker,
            none => none.insert(Worker::start()?),
        };
        self.pending += 1;
        let sent = worker.jobs.as_ref().map(|jobs| jobs.send(job));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(Error::Thread("the thread that writes checkpoints ended early".to_owned())),
        }
    }
}

impl Worker {
    fn start() -> Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (sender, outcomes) = channel();
        let work = move || {
            let mut failed = false;
            for job in queue {
                let outcome = match job {
                    _ if failed => Ok(None),
                    Job::Write(path, snapshot) => snapshot.write(&path).map(|()| Some(path)),
                    Job::Delete(path) => match fs::remove_file(&path) {
                        Err(error) if error.kind() != ErrorKind::NotFound => {
                            Err(Error::io(&path, error))
                        }
                        _ => Ok(None),
                    },
                };
                failed |= outcome.is_err();
                if sender.send(outcome).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("checkpoints".to_owned()).spawn(work);
        let thread = thread.map_err(|error| Error::io("a thread for checkpoints", error))?;
        Ok(Self { jobs: Some(jobs), outcomes, thread: Some(thread) })
    }
}

impl Drop for Worker {
    /// Waits for the jobs that were started, also if the run ends with an error.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The result is ignored, because a panic of the thread has already printed its message.
            let _ = thread.join();
        }
    }
}
