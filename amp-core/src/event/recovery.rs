//! The actions with which the trainer continues a run after a problem.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::precision::Precision;

/// An action with which the trainer continues a run after a problem, such as a skipped step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "recovery", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Recovery {
    /// A step was skipped, and its examples ran again with a lower loss scale.
    LoweredScale {
        /// The new scale.
        scale: f64,
    },
    /// The trainer restored an earlier state of the run.
    Restored {
        /// The number of applied optimizer steps of the restored state.
        global_step: u64,
    },
    /// Training continues in another precision, because steps in the previous precision were not
    /// finite.
    FellBack {
        /// The new precision.
        precision: Precision,
    },
    /// The loss scale stays at its lowest allowed value instead of becoming smaller.
    HeldScale {
        /// The lowest allowed loss scale.
        scale: f64,
    },
    /// Each batch is split into micro-batches, because a whole batch does not fit into memory.
    MicroBatches {
        /// The number of micro-batches into which a batch is split.
        parts: i64,
    },
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoweredScale { scale } => {
                write!(f, "the step is repeated with the same examples at the loss scale {scale}")
            }
            Self::Restored { global_step } => {
                let plural = if *global_step == 1 { "" } else { "s" };
                write!(
                    f,
                    "the run is restored to its state after {global_step} applied optimizer \
                     step{plural}"
                )
            }
            Self::FellBack { precision } => write!(f, "the run continues in {precision}"),
            Self::HeldScale { scale } => {
                write!(f, "the loss scale stays at the lowest allowed scale of {scale}")
            }
            Self::MicroBatches { parts } => {
                write!(f, "out of memory: each step now runs its batch as {parts} micro-batches")
            }
        }
    }
}
