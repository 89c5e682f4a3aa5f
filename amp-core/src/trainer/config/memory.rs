//! What is done when memory is short.

use crate::{Error, Result};

/// How much memory a run may take, and what is done when it is short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// The most bytes that a step's tensors may hold at once, if less than memory has: parameters,
    /// buffers, optimizer state, gradients, activations and the step's batches; on CUDA all that the
    /// process holds on the device. On the first step's examples the trainer measures which modules
    /// to checkpoint for that, the cheapest to compute again that suffice: layers of a
    /// [`Sequential`](crate::nn::Sequential), others that are [`shared`](crate::Module::shared), and
    /// [`Checkpoint`](crate::nn::Checkpoint)s, whatever these say themselves. No number changes on
    /// the CPU, and what a model's checkpoints hold of its own state is put back. An optimizer's
    /// temporaries are not counted.
    pub budget: Option<u64>,
    /// Whether a batch that does not fit into memory is run in halves, quarters and so on, whose
    /// gradients add up to the batch's. Batch statistics are then those of the parts.
    pub micro_batching: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { budget: None, micro_batching: true }
    }
}

impl MemoryConfig {
    /// Whether a batch of this length that failed so runs in more parts.
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
