//! Times of a step's phases. The device is waited for at the end of each, so that only every
//! n-th step is profiled and the others run ahead as usual.

use std::time::Instant;

use tch::{Cuda, Device};

use crate::{Result, event::Phases, memory};

/// Runs from the start of a step.
pub(super) struct Stopwatch {
    device: Device,
    since: Instant,
    phases: Phases,
}

impl Stopwatch {
    pub(super) fn start(device: Device) -> Self {
        wait(device);
        Self { device, since: Instant::now(), phases: Phases::default() }
    }

    /// Adds the time since the last lap to a phase.
    pub(super) fn lap(&mut self, phase: impl FnOnce(&mut Phases) -> &mut f64) -> Result<()> {
        wait(self.device);
        let now = Instant::now();
        *phase(&mut self.phases) += (now - self.since).as_secs_f64();
        self.since = now;
        if let Device::Cuda(_) = self.device {
            let allocated = memory::cuda_allocated(self.device)?;
            self.phases.memory = self.phases.memory.max(Some(allocated));
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Phases {
        self.phases
    }
}

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}
