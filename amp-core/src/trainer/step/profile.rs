//! Measures the times of a step's phases, on the host and on the device, without waiting for the
//! device: on CUDA, an event in the stream marks the end of each phase, and the times of the events
//! are read at the end of the epoch.

use std::time::Instant;

use tch::Device;

use crate::{
    Result,
    event::{Interval, Phase, Profile, Span},
    ffi::CudaEvent,
    memory,
};

/// A moment on the host's clock and, on CUDA, an event in the device's stream.
struct Mark {
    host: Instant,
    device: Option<CudaEvent>,
}

impl Mark {
    fn now(device: Device) -> Result<Self> {
        let event = device.is_cuda().then(|| CudaEvent::record(device)).transpose()?;
        Ok(Self { host: Instant::now(), device: event })
    }

    fn interval_to(&self, end: &Self, origin: &Self) -> Result<(Interval, Option<Interval>)> {
        let host = Interval {
            start: (self.host - origin.host).as_secs_f64(),
            seconds: (end.host - self.host).as_secs_f64(),
        };
        let device = match (&origin.device, &self.device, &end.device) {
            (Some(origin), Some(start), Some(end)) => {
                let (start, seconds) = (origin.seconds_to(start)?, start.seconds_to(end)?);
                Some(Interval { start, seconds })
            }
            _ => None,
        };
        Ok((host, device))
    }
}

/// What is recorded of a profiled step, until its times are read.
pub(in crate::trainer) struct Recording {
    epoch: i64,
    batch: i64,
    start: Mark,
    /// The phases in order, each with the moment of its end. `None` marks time that belongs to no
    /// phase.
    ends: Vec<(Option<Phase>, Mark)>,
    memory: Option<u64>,
}

/// Measures the steps that the user's options select for profiling.
pub(in crate::trainer) struct Profiler {
    device: Device,
    origin: Option<Mark>,
    running: Option<Recording>,
    done: Vec<Recording>,
}

impl Profiler {
    pub(super) fn new(device: Device) -> Self {
        Self { device, origin: None, running: None, done: Vec::new() }
    }

    /// Begins to profile the step that starts with this batch.
    pub(in crate::trainer) fn start(&mut self, epoch: i64, batch: i64) -> Result<()> {
        if self.origin.is_none() {
            self.origin = Some(Mark::now(self.device)?);
        }
        let start = Mark::now(self.device)?;
        self.running = Some(Recording { epoch, batch, start, ends: Vec::new(), memory: None });
        Ok(())
    }

    /// Returns whether a step is being profiled.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Records that the phase `phase` ends at this moment. Does nothing if no step is being
    /// profiled.
    pub(in crate::trainer) fn lap(&mut self, phase: Phase) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        running.ends.push((Some(phase), Mark::now(self.device)?));
        if self.device.is_cuda() {
            let allocated = memory::cuda_allocated(self.device)?;
            running.memory = running.memory.max(Some(allocated));
        }
        Ok(())
    }

    /// Pauses the profiling of the current step and returns what was recorded of it. Returns `None`
    /// if no step is being profiled.
    pub(in crate::trainer) fn suspend(&mut self) -> Option<Recording> {
        self.running.take()
    }

    /// Continues the profiling of a step that [`suspend`](Self::suspend) has paused. The time of
    /// the pause is not counted in any phase.
    pub(in crate::trainer) fn resume(&mut self, recording: Option<Recording>) -> Result<()> {
        self.running = recording;
        if let Some(running) = &mut self.running {
            running.ends.push((None, Mark::now(self.device)?));
        }
        Ok(())
    }

    /// Ends the profiling of the current step.
    pub(in crate::trainer) fn stop(&mut self) {
        self.done.extend(self.running.take());
    }

    /// Returns the profiles of the steps that have ended since the last call. Waits for the device.
    pub(in crate::trainer) fn take(&mut self) -> Result<Vec<Profile>> {
        let Some(origin) = &self.origin else { return Ok(Vec::new()) };
        let read = |recording: Recording| -> Result<Profile> {
            let Recording { epoch, batch, start, ends, memory } = recording;
            let mut spans = Vec::with_capacity(ends.len());
            let mut since = &start;
            for (phase, end) in &ends {
                if let Some(phase) = *phase {
                    let (host, device) = since.interval_to(end, origin)?;
                    spans.push(Span { phase, host, device });
                }
                since = end;
            }
            Ok(Profile { epoch, batch, spans, memory })
        };
        self.done.drain(..).map(read).collect()
    }
}
