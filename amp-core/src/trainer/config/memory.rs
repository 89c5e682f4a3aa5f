//! How much memory a run may use, and what happens when memory is short.

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
    /// The largest number of bytes that the tensors of a training step may use at once: parameters,
    /// buffers, optimizer state, gradients, activations and the step's batches. Temporary tensors
    /// of an optimizer are not counted. On CUDA, the budget limits all memory that the process uses
    /// on the device.
    ///
    /// To stay below the budget, the trainer recomputes the activations of some modules in the
    /// backward pass (activation checkpointing). Before the first step, it measures how many bytes
    /// each module that can be recomputed keeps and how long its recomputation takes, and chooses
    /// those that save enough memory at the least cost in time. These modules are the layers of a
    /// [`Sequential`](crate::nn::Sequential), other modules that are
    /// [`shared`](crate::Module::shared), and [`Checkpoint`](crate::nn::Checkpoint)s, whose own
    /// setting `enabled` is ignored. On the CPU, the results are the same with and without
    /// recomputation.
    pub budget: Option<u64>,
    /// Whether a batch that does not fit into memory is split into halves, quarters and so on. The
    /// gradients of the parts are added up. Batch statistics, such as those of a batch norm, are
    /// computed for each part separately.
    pub micro_batching: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { budget: None, micro_batching: true }
    }
}

impl MemoryConfig {
    /// Returns whether a batch that failed with `error` should run again in twice as many parts.
    /// The batch has `length` examples and ran in `parts` parts.
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
