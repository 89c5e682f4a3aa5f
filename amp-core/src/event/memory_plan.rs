//! Which modules recompute their activations in the backward pass, so that training stays within
//! the memory budget.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{memory::show_bytes, nn::Segment};

/// The modules whose activations are recomputed in the backward pass, so that a training step fits
/// into the memory budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// The memory budget: the most bytes that tensors may occupy on the device.
    pub budget: u64,
    /// The chosen modules.
    pub segments: Vec<Segment>,
    /// The number of bytes of activations that the recomputation frees between the forward and the
    /// backward pass.
    pub freed: u64,
    /// The largest number of bytes that tensors are expected to occupy during a step.
    pub predicted_peak: u64,
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { budget, segments, freed, predicted_peak } = self;
        let (budget, peak) = (show_bytes(*budget), show_bytes(*predicted_peak));
        if segments.is_empty() {
            return write!(
                f,
                "memory: a step needs {peak} of the budget of {budget}; no module is checkpointed"
            );
        }
        let freed = show_bytes(*freed);
        write!(
            f,
            "memory: a step needs {peak} of the budget of {budget}; {freed} are saved by \
             checkpointing"
        )?;
        let mut separator = " ";
        for segment in segments {
            write!(f, "{separator}`{segment}`")?;
            separator = ", ";
        }
        Ok(())
    }
}
