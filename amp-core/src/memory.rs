//! Peak memory of tensors, counted the same way on CPU and CUDA.

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::{Error, Result, ffi};

/// Bytes of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// The most that tensors asked for at once, above what was held at the start.
    pub peak_allocated: u64,
    /// The most the caching allocator reserved; CUDA only.
    pub peak_reserved: Option<u64>,
}

/// Bytes that tensors on a CUDA device have asked for now.
///
/// # Errors
/// When the device is not a CUDA device or cannot be asked.
pub fn cuda_allocated(device: Device) -> Result<u64> {
    match device {
        Device::Cuda(index) => Ok(ffi::cuda_memory(index)?.0.max(0).cast_unsigned()),
        other => Err(Error::config(format!("{other:?} is not a CUDA device"))),
    }
}

/// Bytes the driver has free on a CUDA device now; what the caching allocator keeps is not free.
///
/// # Errors
/// When the device is not a CUDA device or cannot be asked.
pub fn cuda_free(device: Device) -> Result<u64> {
    match device {
        Device::Cuda(index) => ffi::cuda_free_memory(index),
        other => Err(Error::config(format!("{other:?} is not a CUDA device"))),
    }
}

/// Measures from its creation. On CUDA it reads the caching allocator's statistics of what was asked
/// for (`requested_bytes.all.peak` of torch.cuda.memory_stats), since the blocks that it gives, which
/// torch.cuda.max_memory_allocated counts, are up to 1 MiB larger each, depending on what ran before;
/// on the CPU it counts what libtorch's allocator hands out on this thread and its workers, which is
/// exact and does not depend on the C library's heap.
pub struct MemoryMeter {
    source: Source,
}

enum Source {
    Host(ffi::HostMemory),
    Cuda { index: usize, before: i64 },
}

impl MemoryMeter {
    /// Starts measuring; on CUDA cached blocks are given back first.
    ///
    /// # Errors
    /// When the device cannot be asked.
    pub fn start(device: Device) -> Result<Self> {
        let source = match device {
            Device::Cuda(index) => {
                ffi::cuda_empty_cache()?;
                ffi::cuda_memory_reset_peak(index)?;
                Source::Cuda { index, before: ffi::cuda_memory(index)?.0 }
            }
            _ => Source::Host(ffi::HostMemory::start()?),
        };
        Ok(Self { source })
    }

    /// What was seen since the start.
    ///
    /// # Errors
    /// When the device cannot be asked.
    pub fn read(&self) -> Result<Memory> {
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
}
