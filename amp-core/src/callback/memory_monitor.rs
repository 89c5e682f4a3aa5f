use super::Callback;
use crate::{Hook, Result, log::LogOptions, memory::MemoryMeter, module::StepAccess};

/// Logs the peak memory of each epoch in MiB. `memory_peak_mib` is the peak number of bytes in
/// tensors, minus the number of bytes at the start of the epoch. On CUDA, `memory_reserved_mib` is
/// the peak number of bytes that the caching allocator reserved.
///
/// Use only one `MemoryMonitor` in a process at a time, because on CUDA the allocator has a single
/// peak counter.
#[derive(Default)]
pub struct MemoryMonitor {
    meter: Option<MemoryMeter>,
}

impl MemoryMonitor {
    /// Creates a monitor that has no measurements yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Callback for MemoryMonitor {
    fn name(&self) -> String {
        "MemoryMonitor".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    fn on_train_epoch_start(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        self.meter = Some(MemoryMeter::start(hook.device)?);
        Ok(())
    }

    fn on_train_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        // If the run was resumed in the middle of this epoch, the epoch's start was not measured.
        // The peak of only a part of the epoch would be misleading, so nothing is logged.
        let Some(meter) = self.meter.take() else { return Ok(()) };
        let memory = meter.read()?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        hook.log_number("memory_peak_mib", mib(memory.peak_allocated), LogOptions::ON_EPOCH)?;
        match memory.peak_reserved {
            Some(reserved) => {
                hook.log_number("memory_reserved_mib", mib(reserved), LogOptions::ON_EPOCH)
            }
            None => Ok(()),
        }
    }
}
