//! Peak memory of tensors, counted the same way on CPU and CUDA.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicI64, Ordering},
};

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

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

/// Bytes of a tensor's elements; of a view too those that it shows.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// A copy in other memory. It has no history: the history of a copy of a parameter would keep the
/// parameter's place in the autograd graph, which belongs to one CUDA stream, and no step could be captured.
pub(crate) fn copy_of(tensor: &Tensor) -> Result<Tensor> {
    Ok(tch::no_grad(|| tensor.f_detach_copy())?)
}

/// Reads a number of bytes: `2GiB` and `1.5 GiB` by powers of 1024, `500MB` by powers of 1000, or bytes
/// alone.
///
/// # Errors
/// When the text is no such size, or none at all.
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
            "`{text}` is no size in bytes: write it as 500MB, 2GiB or 1048576"
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

/// Bytes as people read them: `1.5 MiB`, `2.00 GiB`.
pub fn show_bytes(count: u64) -> String {
    let mib = count as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
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
    Cuda {
        index: usize,
        before: i64,
        /// The highest peak that other meters have ended since the start.
        earlier: Arc<AtomicI64>,
    },
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
                let earlier = PEAKS.end(index, ffi::cuda_memory(index)?.1);
                ffi::cuda_memory_reset_peak(index)?;
                Source::Cuda { index, before: ffi::cuda_memory(index)?.0, earlier }
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
            Source::Cuda { index, before, earlier } => {
                let (_, peak, reserved) = ffi::cuda_memory(*index)?;
                let peak = peak.max(earlier.load(Ordering::SeqCst));
                Memory {
                    peak_allocated: (peak - before).max(0).cast_unsigned(),
                    peak_reserved: Some(reserved.max(0).cast_unsigned()),
                }
            }
        })
    }

    /// Bytes held now above what was held at the start; negative where some of that was let go.
    ///
    /// # Errors
    /// When the device cannot be asked.
    pub fn allocated(&self) -> Result<i64> {
        match &self.source {
            Source::Host(host) => Ok(host.read().0),
            Source::Cuda { index, before, .. } => Ok(ffi::cuda_memory(*index)?.0 - before),
        }
    }
}

/// The meters of CUDA devices. A device keeps one peak for all of them: one that starts sets it back, and
/// leaves the peak until then to those that go on measuring.
struct Peaks(Mutex<Vec<(usize, Weak<AtomicI64>)>>);

static PEAKS: Peaks = Peaks(Mutex::new(Vec::new()));

impl Peaks {
    /// Leaves `peak`, which is about to be set back, to the meters of the device; returns where a new one
    /// finds those that are ended after its start.
    fn end(&self, index: usize, peak: i64) -> Arc<AtomicI64> {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        meters.retain(|(_, meter)| meter.strong_count() > 0);
        for meter in meters.iter().filter(|(of, _)| *of == index).filter_map(|(_, m)| m.upgrade()) {
            meter.fetch_max(peak, Ordering::SeqCst);
        }
        let own = Arc::new(AtomicI64::new(0));
        meters.push((index, Arc::downgrade(&own)));
        own
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_meter_keeps_the_peaks_that_later_ones_end() {
        let peaks = Peaks(Mutex::default());
        let outer = peaks.end(0, 500);
        let inner = peaks.end(0, 70);
        let other = peaks.end(1, 900);
        drop(peaks.end(0, 60));
        let read = |meter: &Arc<AtomicI64>| meter.load(Ordering::SeqCst);
        assert_eq!([read(&outer), read(&inner), read(&other)], [70, 60, 0]);
        drop(inner);
        drop(peaks.end(0, 0));
        assert_eq!(peaks.0.lock().expect("no panic").len(), 3, "what has ended is dropped");
    }

    #[test]
    fn a_copy_of_a_parameter_has_no_history() -> Result<()> {
        let parameter = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let copy = copy_of(&parameter)?;
        assert!(!copy.requires_grad() && copy.data_ptr() != parameter.data_ptr());
        Ok(())
    }
}
