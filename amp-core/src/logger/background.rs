use std::{
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread::{self, JoinHandle},
};

use crate::{
    Error, Result,
    event::{Event, Subscriber},
};

/// Writes events to a file or another destination. [`Background`] runs it on a thread.
pub trait Sink: Send + 'static {
    /// Receives an event. The sink may keep it in memory until the next `flush`.
    ///
    /// # Errors
    /// An error ends the thread and the run.
    fn write(&mut self, event: &Event) -> Result<()>;

    /// Writes everything received so far. It is called whenever no event is waiting, so it must
    /// cost nothing if there is nothing to write.
    ///
    /// # Errors
    /// An error ends the thread and the run.
    fn flush(&mut self) -> Result<()>;
}

/// The largest number of events that may wait for the thread.
const QUEUE: usize = 1024;

/// Passes events to a [`Sink`] on a thread of its own, so that no training step waits for a disk.
///
/// At most 1,024 events wait. If the disk is slower, the training loop waits for it, because no
/// event is dropped. An error of the sink is returned for the next event. The call for the run's
/// last event returns when everything is written. Dropping this object also waits for that.
#[derive(Debug)]
pub struct Background {
    /// `None` when the thread has failed or is about to end.
    sender: Option<SyncSender<Message>>,
    worker: Option<JoinHandle<Result<()>>>,
}

enum Message {
    Event(Box<Event>),
    /// The thread answers when all earlier messages are written.
    Flush(SyncSender<()>),
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub fn start(sink: impl Sink) -> Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        let worker = thread::Builder::new()
            .name("logger".into())
            .spawn(move || run(sink, &receiver))
            .map_err(|error| {
                Error::Thread(format!("the thread of a logger cannot be started: {error}"))
            })?;
        Ok(Self { sender: Some(sender), worker: Some(worker) })
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// The sink's error, if the sink failed since the last call.
    pub fn flush(&mut self) -> Result<()> {
        let (done, answer) = sync_channel(1);
        self.send(Message::Flush(done))?;
        // A thread that has ended sends no answer.
        answer.recv().map_err(|_| self.failure())
    }

    fn send(&mut self, message: Message) -> Result<()> {
        match &self.sender {
            Some(sender) if sender.send(message).is_ok() => Ok(()),
            _ => Err(self.failure()),
        }
    }

    /// Returns the reason why the thread has ended.
    fn failure(&mut self) -> Error {
        self.sender = None;
        match self.worker.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => error,
            Some(Err(_)) => Error::Thread("a logger panicked: its log ends there".to_owned()),
            // While the channel is open, the thread ends only with an error. An earlier call has
            // already returned that error.
            Some(Ok(Ok(()))) | None => {
                Error::Thread("a logger failed earlier: its log ends there".to_owned())
            }
        }
    }
}

impl Subscriber for Background {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        self.send(Message::Event(Box::new(event.clone())))?;
        if event.ends_run() { self.flush() } else { Ok(()) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(worker) = self.worker.take() {
            // An error of the thread can be ignored: if the run reached its last event, that
            // event's call has already returned the error. Otherwise the run failed for another
            // reason, and the caller reports that.
            let _ = worker.join();
        }
    }
}

fn run(mut sink: impl Sink, receiver: &Receiver<Message>) -> Result<()> {
    loop {
        let message = match receiver.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => return sink.flush(),
            Err(TryRecvError::Empty) => {
                sink.flush()?;
                let Ok(message) = receiver.recv() else { return Ok(()) };
                message
            }
        };
        match message {
            Message::Event(event) => sink.write(&event)?,
            Message::Flush(done) => {
                sink.flush()?;
                // The thread that requested the flush may have ended. Nobody needs the answer then.
                let _ = done.send(());
            }
        }
    }
}
