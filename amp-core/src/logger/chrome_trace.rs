use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{Background, Sink};
use crate::{
    Error, Result,
    event::{Event, FitStart, Interval, Profile, Span, Subscriber},
};

/// Writes the profiled steps as a trace for chrome://tracing and Perfetto. The file is in the Trace
/// Event Format: a JSON array of complete events (`"ph": "X"`). Times are in microseconds since the
/// first profiled step of the run.
///
/// The trace shows each run as a process `host`. A run on CUDA also has a process `device`, because
/// host and device have different clocks. In both processes, each event `step` contains the events
/// of the step's phases. The events of steps and phases have the arguments `epoch` and `batch`. The
/// counter `memory` shows the largest number of tensor bytes in each profiled step.
///
/// [`profile_every_n_steps`](crate::trainer::LoggingConfig::profile_every_n_steps) selects the
/// profiled steps. The trainer reports these steps at the end of an epoch. After each write the
/// file is a complete JSON array. If a run is killed between two writes, the file still has the
/// profiled steps of the earlier epochs.
#[derive(Debug)]
pub struct ChromeTrace(Background);

impl ChromeTrace {
    /// Creates the file. Replaces an earlier file of this name.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Background::start(Array::create(path.as_ref())?).map(Self)
    }
}

impl Subscriber for ChromeTrace {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::FitStart(_) | Event::Profiled(_) | Event::FitEnd(_) => self.0.on_event(event),
            _ => Ok(()),
        }
    }
}

/// The text that closes the JSON array. The next event overwrites it.
const END: &[u8] = b"\n]\n";

/// A file that is a complete JSON array after every flush.
#[derive(Debug)]
struct Array {
    path: PathBuf,
    file: File,
    /// The position in the file at which `END` begins.
    end: u64,
    buffer: Vec<u8>,
    /// The number of the run in this file, counted from 1, and the name of the run.
    run: (u64, String),
    /// The number of the last run for which the file contains the name of the device process.
    device_named: u64,
}

impl Array {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::io(path, error))?;
        let mut array = Self {
            path: path.to_owned(),
            file,
            end: 0,
            buffer: b"[".to_vec(),
            run: (0, String::new()),
            device_named: 0,
        };
        array.flush()?;
        Ok(array)
    }

    fn add(&mut self, event: &Value) {
        let first = self.end + self.buffer.len() as u64 == 1;
        self.buffer.extend_from_slice(if first { b"\n" } else { b",\n" });
        self.buffer.extend_from_slice(event.to_string().as_bytes());
    }

    fn start(&mut self, start: &FitStart) {
        self.run = (self.run.0 + 1, format!("{} {}", start.run.model, start.run.precision));
        self.process(self.host(), "host");
    }

    /// Writes the names of a process of the run and of that process's only thread.
    fn process(&mut self, pid: u64, place: &str) {
        let process = format!("{}: {place}", self.run.1);
        for (event, name) in [("process_name", process.as_str()), ("thread_name", "steps")] {
            self.add(&json!({
                "name": event, "ph": "M", "pid": pid, "tid": 1, "args": { "name": name },
            }));
        }
    }

    /// Returns the process number of the run's host events. Its device events have the next number.
    fn host(&self) -> u64 {
        2 * self.run.0
    }

    fn device(&self) -> u64 {
        2 * self.run.0 + 1
    }

    fn step(&mut self, profile: &Profile) {
        self.track(self.host(), profile, |span| Some(span.host));
        if profile.spans.iter().all(|span| span.device.is_none()) {
            return;
        }
        if self.device_named != self.run.0 {
            self.device_named = self.run.0;
            self.process(self.device(), "device");
        }
        self.track(self.device(), profile, |span| span.device);
        if let (Some(bytes), Some(last)) = (profile.memory, profile.spans.last()) {
            self.add(&json!({
                "name": "memory", "ph": "C", "pid": self.host(), "tid": 1,
                "ts": 1e6 * (last.host.start + last.host.seconds), "args": { "bytes": bytes },
            }));
        }
    }

    /// Writes a step and its phases to the process `pid`, with the times of one clock (the host's
    /// or the device's).
    fn track(&mut self, pid: u64, step: &Profile, clock: impl Fn(&Span) -> Option<Interval>) {
        let spans = step.spans.iter().filter_map(|span| Some((span.phase.name(), clock(span)?)));
        let spans: Vec<(&str, Interval)> = spans.collect();
        let (Some((_, first)), Some((_, last))) = (spans.first(), spans.last()) else { return };
        let seconds = last.start + last.seconds - first.start;
        let whole = ("step", Interval { start: first.start, seconds });
        for (name, Interval { start, seconds }) in [whole].into_iter().chain(spans) {
            self.add(&json!({
                "name": name, "ph": "X", "pid": pid, "tid": 1,
                "ts": 1e6 * start, "dur": 1e6 * seconds,
                "args": { "epoch": step.epoch, "batch": step.batch },
            }));
        }
    }
}

impl Sink for Array {
    fn write(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::FitStart(start) => self.start(start),
            Event::Profiled(profile) => self.step(profile),
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = self.buffer.len() as u64;
        // One call writes everything, so that the file is incomplete only for a moment.
        self.buffer.extend_from_slice(END);
        self.file
            .write_all_at(&self.buffer, self.end)
            .map_err(|error| Error::io(&self.path, error))?;
        self.end += length;
        self.buffer.clear();
        Ok(())
    }
}
