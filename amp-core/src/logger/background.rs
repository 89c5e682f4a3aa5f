use std::{
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread::{self, JoinHandle},
};

use crate::{
    Error, Result,
    event::{Event, Subscriber},
};

/// Writes events to a file or another destination. A [`Background`] calls the sink on a separate
/// thread.
pub trait Sink: Send + 'static {
    /// Receives one event. The sink may keep the event in memory until the next `flush`.
    ///
    /// # Errors
    /// An error ends the thread and the run.
    fn write(&mut self, event: &Event) -> Result<()>;

    /// Writes all events that the sink has received and not yet written. `flush` is called whenever
    /// no event is waiting, so it must return immediately if there is nothing to write.
    ///
    /// # Errors
    /// An error ends the thread and the run.
    fn flush(&mut self) -> Result<()>;
}

/// The largest number of events that may wait for the logger's thread.
const QUEUE: usize = 1024;

/// Passes events to a [`Sink`] on a separate thread, so that no training step waits for a disk.
///
/// At most 1,024 events wait for the thread. No event is dropped: if the disk is slower than the
/// training loop, the loop waits for the disk. An error of the sink is returned by the call for the
/// next event. The call for the last event of a run returns after all events are written. Dropping
/// the `Background` also waits until all events are written.
#[derive(Debug)]
pub struct Background {
    /// `None` when the thread has failed or is about to end.
    sender: Option<SyncSender<Message>>,
    worker: Option<JoinHandle<Result<()>>>,
}

enum Message {
    Event(Box<Event>),
    /// Asks the thread to write all earlier events, and then to send an answer through this
    /// channel.
    Flush(SyncSender<()>),
}

impl Background {
    /// Starts the thread that passes events to `sink`.
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

    /// Waits until the sink has written all events.
    ///
    /// # Errors
    /// The error of the sink, if the sink has failed since the last call.
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
            Some(Err(_)) => Error::Thread("a logger panicked: its log is incomplete".to_owned()),
            // While the channel is open, the thread ends only with an error. An earlier call has
            // already returned that error.
            Some(Ok(Ok(()))) | None => {
                Error::Thread("a logger failed earlier: its log is incomplete".to_owned())
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
            // An error of the thread can be ignored here. If the run reached its last event, the
            // call for that event has already returned the error. If not, the run failed for
            // another reason, which the caller reports.
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
