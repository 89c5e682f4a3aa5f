//! The peak memory of tensors, measured in the bytes that tensors request, on CPU and CUDA.

use std::cell::Cell;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, ffi};

/// The memory that tensors used during a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The largest number of bytes that tensors had requested at one time, minus the bytes that
    /// were in use when the measurement started.
    pub peak_allocated: u64,
    /// The largest number of bytes that the caching allocator had reserved at one time. `None` on
    /// the CPU.
    pub peak_reserved: Option<u64>,
}

/// Returns the number of bytes that tensors on a CUDA device currently use. Counts the bytes that
/// were requested, not the larger blocks that the allocator handed out.
///
/// # Errors
/// When the device is not a CUDA device or cannot be queried.
pub fn cuda_allocated(device: Device) -> Result<u64> {
    match device {
        Device::Cuda(index) => Ok(ffi::cuda_memory(index)?.0.max(0).cast_unsigned()),
        other => Err(Error::config(format!("{other:?} is not a CUDA device"))),
    }
}

/// Returns the number of free bytes of a CUDA device, according to the driver.
///
/// # Errors
/// When the device is not a CUDA device or cannot be queried.
pub fn cuda_free(device: Device) -> Result<u64> {
    match device {
        Device::Cuda(index) => ffi::cuda_free_memory(index),
        other => Err(Error::config(format!("{other:?} is not a CUDA device"))),
    }
}

/// Returns the number of bytes of a tensor's elements. For a view of a larger tensor, counts only
/// the elements of the view.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// Returns a detached copy of the tensor in memory of its own. A copy with autograd history would
/// keep the parameter's node of the autograd graph alive. This node belongs to the CUDA stream on
/// which it was created. As long as the node exists, steps on another stream cannot be captured as
/// CUDA graphs.
pub(crate) fn copy_of(tensor: &Tensor) -> Result<Tensor> {
    Ok(tch::no_grad(|| tensor.f_detach_copy())?)
}

/// Parses a number of bytes: `1.5 GiB` (powers of 1024), `500MB` (powers of 1000), or `1048576`.
///
/// ```
/// use amp_core::memory::{parse_bytes, show_bytes};
///
/// assert_eq!(parse_bytes("1.5 GiB")?, 1_610_612_736);
/// assert_eq!(show_bytes(1_610_612_736), "1.50 GiB");
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When the text is not a number of bytes, or the number is below 1.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match unit.as_str() {
        "" | "b" => Some(1.0),
        _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor),
    };
    let bytes = number.parse::<f64>().ok().zip(factor).map(|(number, factor)| number * factor);
    match bytes {
        Some(bytes) if bytes >= 1.0 => Ok(bytes as u64),
        _ => Err(Error::config(format!(
            "`{text}` is not a size in bytes: write it as 500MB, 2GiB or 1048576"
        ))),
    }
}

const UNITS: [(&str, f64); 8] = [
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("tb", 1e12),
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
];

/// Formats bytes: `12.0 KiB`, `1.5 MiB`, `2.00 GiB`.
pub fn show_bytes(count: u64) -> String {
    match count as f64 / f64::from(1 << 20) {
        0.0 => "0 B".to_owned(),
        mib if mib < 1.0 => format!("{:.1} KiB", mib * 1024.0),
        mib if mib < 1024.0 => format!("{mib:.1} MiB"),
        mib => format!("{:.2} GiB", mib / 1024.0),
    }
}

/// Measures the memory that tensors use, from the creation of the meter on. Only one meter can
/// measure at a time: an earlier meter does not see the memory that is allocated while a later one
/// is active. If the measurement of a run is incomplete for this reason, the run violates the
/// invariant [`memory-over-step`](crate::trainer::Invariant::MemoryOverStep). On CUDA the meter
/// reads the caching allocator's statistics of requested bytes (`requested_bytes.all.peak` of
/// torch.cuda.memory_stats). torch.cuda.max_memory_allocated counts the allocator's blocks instead.
/// Each block is up to 1 MiB larger than requested, depending on earlier allocations. On the CPU
/// the meter counts the bytes that libtorch's allocator hands out on this thread and its worker
/// threads. This count is exact and does not depend on the heap of the C library.
pub struct MemoryMeter {
    source: Source,
    /// The value of `STARTED` when this meter was created. If `STARTED` is larger at a reading,
    /// another meter has been started since.
    started: u64,
}

thread_local! {
    /// The number of meters that were started on this thread.
    static STARTED: Cell<u64> = const { Cell::new(0) };
    /// The number of readings of meters that were not the last one started, so that memory may be
    /// missing from the readings.
    static CUT_SHORT: Cell<u64> = const { Cell::new(0) };
}

/// Returns how many readings on this thread may miss memory because a later meter was started.
pub(crate) fn readings_cut_short() -> u64 {
    CUT_SHORT.get()
}

enum Source {
    Host(ffi::HostMemory),
    Cuda { index: usize, before: i64 },
}

impl MemoryMeter {
    /// Starts a measurement. On CUDA, first waits for the device, releases the blocks that the
    /// allocator has cached, and lets cuBLAS allocate its workspaces. cuBLAS keeps these
    /// workspaces, so the first run of a process would otherwise use up to 64 MiB more than the
    /// same run later.
    ///
    /// # Errors
    /// When the device cannot be queried.
    pub fn start(device: Device) -> Result<Self> {
        if device.is_cuda() {
            allocate_workspaces(device)?;
        }
        STARTED.set(STARTED.get() + 1);
        Self::untracked(device)
    }

    /// Starts a measurement outside of a run, for example of trials before the first step. The new
    /// meter is not counted in `STARTED`, so readings of earlier meters do not count as incomplete.
    pub(crate) fn untracked(device: Device) -> Result<Self> {
        let source = match device {
            Device::Cuda(index) => {
                ffi::cuda_memory_settle(index)?;
                ffi::cuda_empty_cache()?;
                ffi::cuda_memory_reset_peak(index)?;
                Source::Cuda { index, before: ffi::cuda_memory(index)?.0 }
            }
            _ => Source::Host(ffi::HostMemory::start()?),
        };
        Ok(Self { source, started: STARTED.get() })
    }

    /// Returns the peak numbers of bytes since this meter was created.
    ///
    /// # Errors
    /// When the device cannot be queried.
    pub fn read(&self) -> Result<Memory> {
        if self.started != STARTED.get() {
            CUT_SHORT.set(CUT_SHORT.get() + 1);
        }
        Ok(match &self.source {
            Source::Host(host) => {
                Memory { peak_allocated: host.read().1.max(0).cast_unsigned(), peak_reserved: None }
            }
            Source::Cuda { index, before } => {
                let (_, peak, reserved) = ffi::cuda_memory(*index)?;
                Memory {
                    peak_allocated: (peak - before).max(0).cast_unsigned(),
                    peak_reserved: Some(reserved.max(0).cast_unsigned()),
                }
            }
        })
    }

    /// Returns the bytes that are in use now, minus the bytes that were in use when this meter was
    /// created. The result is negative if more bytes were freed than allocated since. On CUDA, first
    /// waits for the device, because the allocator may count a freed tensor until the device has
    /// finished its work.
    ///
    /// # Errors
    /// When the device cannot be queried.
    pub fn allocated(&self) -> Result<i64> {
        match &self.source {
            Source::Host(host) => Ok(host.read().0),
            Source::Cuda { index, before } => {
                ffi::cuda_memory_settle(*index)?;
                Ok(ffi::cuda_memory(*index)?.0 - before)
            }
        }
    }
}

/// Lets cuBLAS allocate its workspaces for this thread and for the thread that runs backward passes
/// on the device: multiplies two small matrices and computes the gradients.
fn allocate_workspaces(device: Device) -> Result<()> {
    tch::with_grad(|| {
        let weight = Tensor::f_ones([16, 16], (Kind::Float, device))?.f_set_requires_grad(true)?;
        Ok(weight.f_matmul(&weight)?.f_sum(Kind::Float)?.f_backward()?)
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_copy_of_a_parameter_has_no_history() -> Result<()> {
        let parameter = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let copy = copy_of(&parameter)?;
        assert!(!copy.requires_grad() && copy.data_ptr() != parameter.data_ptr());
        Ok(())
    }
}
