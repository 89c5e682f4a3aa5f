use std::{fmt, str::FromStr};

use tch::Device;

use super::{AnyBatch, SharedDataset};
use crate::{Error, Result, memory, precision::Policy};

/// [`Placement::Auto`] stores a data set on a CUDA device if it takes at most this fraction of the
/// device's free memory.
pub const DEVICE_SHARE: f64 = 0.25;

/// Where a data set is stored during training. The batches are bit-identical for all placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Placement {
    /// Chooses the faster placement. If training runs on a CUDA device, a data set in memory is
    /// copied to the device, provided that it takes at most the fraction [`DEVICE_SHARE`] of the
    /// device's free memory. If training runs on the CPU, a data set in memory is cast to the
    /// precision's dtype once, before training, unless prefetching is requested. Every other data
    /// set stays on the host, and its batches are moved to the device one by one.
    #[default]
    Auto,
    /// On the training device. The whole data set is read before the first batch, as one batch and
    /// each example alone. A set that pads its examples to the longest one of a batch is refused.
    Device,
    /// On the host. Each batch is read there and then moved to the training device.
    Host,
}

impl Placement {
    /// All placements.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Device, Self::Host];

    /// Returns the placement's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Device => "device",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Placement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|placement| placement.name() == text).ok_or_else(|| {
            Error::config(format!("unknown placement `{text}`: expected auto, device or host"))
        })
    }
}

/// How examples are read, and how batches are moved to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loading {
    /// Whether training leaves out the last batch of an epoch if the batch is not full.
    pub drop_last: bool,
    /// Where the data sets are stored during training: on the host or on the device.
    pub placement: Placement,
    /// For data sets on the host: the number of batches that a thread reads ahead of the training
    /// loop. For a CUDA device, the thread also pins the memory of the batches, and copies the
    /// batches on a separate CUDA stream. With `Some(0)` the training loop itself reads each batch.
    /// [`Loading::prefetch_for`] returns the number that `None` stands for.
    ///
    /// If [`num_workers`](Self::num_workers) is not 0, this is the number of batches that all
    /// workers together read ahead. `None` then means 2 batches for each worker.
    pub prefetch: Option<usize>,
    /// The number of threads that read the examples of a [`MapDataset`](super::MapDataset). Each
    /// thread makes one whole batch at a time. The batches and their order are the same for any
    /// number of threads. With 0, the training loop or the prefetching thread reads the examples.
    /// Data sets of other types ignore this number.
    pub num_workers: usize,
}

impl Loading {
    /// Returns the number of batches that a thread reads ahead of the training loop. If no number
    /// is requested, the number is 2 for CUDA, like the default of PyTorch's `prefetch_factor`. For
    /// the CPU the number is 0, because the training loop itself needs the cores.
    pub fn prefetch_for(&self, device: Device) -> usize {
        self.prefetch.unwrap_or(if device.is_cuda() { 2 } else { 0 })
    }

    /// Returns the number of batches that all workers together read ahead of the training loop.
    pub(super) fn ahead_of_workers(&self) -> usize {
        self.prefetch.unwrap_or(2 * self.num_workers)
    }

    pub(super) fn check(&self) -> Result<()> {
        let workers = self.num_workers;
        match (self.placement, self.prefetch) {
            (Placement::Device, _) if workers > 0 => Err(Error::config(format!(
                "num_workers {workers}: a set on the device is not read by workers: choose `placement` \
                 `auto` or `host`, or leave `num_workers` out"
            ))),
            (_, Some(0)) if workers > 0 => Err(Error::config(format!(
                "prefetch is 0, so the {workers} workers have no batch to make: leave prefetch \
                 out, or set it to the number of batches that the workers may make ahead"
            ))),
            (Placement::Device, Some(ahead)) if ahead > 0 => Err(Error::config(format!(
                "prefetch {ahead}: a set on the device is not prefetched: choose `placement` `auto` or \
                 `host`, or leave `prefetch` out"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the whole data set as one batch on the training device, if the placement stores the
    /// data set there. Returns `None` if the data set stays on the host.
    pub(super) fn resident(
        &self,
        data: &SharedDataset,
        policy: Policy,
    ) -> Result<Option<AnyBatch>> {
        let all = match self.placement {
            Placement::Host => None,
            Placement::Device => Some(match data.in_memory()? {
                Some(all) => all,
                None => data.whole()?,
            }),
            Placement::Auto => match data.in_memory()? {
                Some(all) if self.fits(&all, policy)? => Some(all),
                _ => None,
            },
        };
        all.map(|all| all.place(policy)).transpose()
    }

    /// Returns whether [`Placement::Auto`] stores the data set `all` on the training device.
    fn fits(&self, all: &AnyBatch, policy: Policy) -> Result<bool> {
        if !policy.device.is_cuda() {
            return Ok(self.prefetch_for(policy.device) == 0);
        }
        let bytes = all.placed_bytes(policy.precision) as f64;
        Ok(all.is_on(policy.device)
            || bytes <= DEVICE_SHARE * memory::cuda_free(policy.device)? as f64)
    }
}
