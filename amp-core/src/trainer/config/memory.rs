//! What happens when memory is short.

use crate::{Error, Result};

/// How much memory a run may use, and what happens when memory is short.
///
/// ```
/// use amp_core::{memory::parse_bytes, prelude::*};
///
/// let budget = parse_bytes("8GiB")?;
/// let config = TrainerConfig::new(Precision::Bf16Mixed, Device::Cpu).with(|config| {
///     config.memory.budget = Some(budget);
/// });
/// # Ok::<(), amp_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// The largest number of bytes that the tensors of a step may use at once: parameters, buffers,
    /// optimizer state, gradients, activations and the step's batches. On CUDA it limits everything
    /// that the process holds on the device. Use it if the run may use only a part of the available
    /// memory. With the first step's examples the trainer measures the modules that it can
    /// recompute in the backward pass, and chooses the set that costs the least time and saves
    /// enough memory. It chooses among the layers of a [`Sequential`](crate::nn::Sequential), other
    /// modules that are [`shared`](crate::Module::shared), and
    /// [`Checkpoint`](crate::nn::Checkpoint)s, whose own setting is ignored. On the CPU,
    /// recomputation changes no number. Temporary tensors of an optimizer are not counted.
    pub budget: Option<u64>,
    /// Whether a batch that does not fit into memory runs in halves, quarters and so on, whose
    /// gradients are added up. Batch statistics are then computed for each part.
    pub micro_batching: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { budget: None, micro_batching: true }
    }
}

impl MemoryConfig {
    /// Returns whether a batch of `length` examples that failed with `error` when it ran in `parts`
    /// parts should run again in twice as many parts.
    pub(in crate::trainer) fn halves(&self, error: &Error, parts: i64, length: i64) -> bool {
        self.micro_batching && error.is_out_of_memory() && 2 * parts <= length
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.budget {
            Some(0) => Err(Error::config("memory_budget is 0, but must be at least 1 byte")),
            _ => Ok(()),
        }
    }
}
