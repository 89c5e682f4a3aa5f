use std::{fmt, str::FromStr};

use tch::Device;

use super::{AnyBatch, SharedDataset};
use crate::{Error, Result, memory, precision::Policy};

/// The share of a CUDA device's free memory that [`Placement::Auto`] gives to a set.
pub const DEVICE_SHARE: f64 = 0.25;

/// Where a set is stored during training. The batches are the same to the last bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Placement {
    /// On the device where that is the quicker way: for a set in memory that takes at most
    /// [`DEVICE_SHARE`] of the free memory of a CUDA device, or where the device is the CPU and
    /// no prefetching is asked for. Otherwise on the host.
    #[default]
    Auto,
    /// On the device, read whole before the first batch: batches are cut out there.
    Device,
    /// On the host: each batch is gathered there and copied to the device.
    Host,
}

impl Placement {
    /// All of them.
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

/// How batches reach the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loading {
    /// Whether a last batch that is not full is left out of training.
    pub drop_last: bool,
    /// Where the sets are stored.
    pub placement: Placement,
    /// For sets on the host, the number of batches that a thread of the loader gathers ahead of the
    /// training loop; for CUDA the thread also pins their memory and copies them on its own stream.
    /// With `Some(0)` the loop does all this itself, one batch at a time. [`Loading::prefetch_for`]
    /// documents `None`.
    ///
    /// With [`num_workers`](Self::num_workers) it is the total number of batches that the workers
    /// make ahead, and `None` means 2 for each worker.
    pub prefetch: Option<usize>,
    /// Threads that read the examples of a [`MapDataset`](super::MapDataset), each a batch at a time
    /// (`num_workers`). The batches are the same and in the same order for any number. 0 reads them where
    /// sets that gather whole batches are read, to which this number is of no concern.
    pub num_workers: usize,
}

impl Loading {
    /// Returns the number of batches ahead of the loop: as asked for, otherwise 2 for CUDA (as
    /// PyTorch's `prefetch_factor`) and 0 for the CPU, whose cores the loop itself needs.
    pub fn prefetch_for(&self, device: Device) -> usize {
        self.prefetch.unwrap_or(if device.is_cuda() { 2 } else { 0 })
    }

    /// Returns the number of batches that workers make ahead of the loop.
    pub(super) fn ahead_of_workers(&self) -> usize {
        self.prefetch.unwrap_or(2 * self.num_workers)
    }

    pub(super) fn check(&self) -> Result<()> {
        let workers = self.num_workers;
        match (self.placement, self.prefetch) {
            (Placement::Device, _) if workers > 0 => Err(Error::config(format!(
                "num_workers {workers}: sets on the device need none; choose placement auto or host, or \
                 leave num_workers out"
            ))),
            (_, Some(0)) if workers > 0 => Err(Error::config(format!(
                "prefetch 0 leaves {workers} workers without a batch to make: leave prefetch out, or give \
                 the batches that they may make ahead"
            ))),
            (Placement::Device, Some(ahead)) if ahead > 0 => Err(Error::config(format!(
                "prefetch {ahead}: sets on the device need none; choose placement auto or host, \
                 or leave prefetch out"
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the whole set on the policy's device, when it is to be stored there.
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

    fn fits(&self, all: &AnyBatch, policy: Policy) -> Result<bool> {
        if !policy.device.is_cuda() {
            return Ok(self.prefetch_for(policy.device) == 0);
        }
        let bytes = all.placed_bytes(policy.precision) as f64;
        Ok(all.is_on(policy.device)
            || bytes <= DEVICE_SHARE * memory::cuda_free(policy.device)? as f64)
    }
}
