//! The times of the phases of a training step, such as its forward and backward pass.

use serde::{Deserialize, Serialize};

/// A phase of an optimizer step. A profile contains the time of each phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// The training loop waits for the next batch.
    Data,
    /// Forward pass, including the loss.
    Forward,
    /// Backward pass.
    Backward,
    /// Unscaling of the gradients, and the check for gradients that are not finite.
    Unscale,
    /// The hooks of the model and of the callbacks that run before the optimizer's step.
    Hooks,
    /// Clipping.
    Clip,
    /// The steps of the optimizers, and the update of the loss scale.
    Optimizer,
}

impl Phase {
    /// All phases, in the order in which a step runs them.
    pub const ALL: [Self; 7] = [
        Self::Data,
        Self::Forward,
        Self::Backward,
        Self::Unscale,
        Self::Hooks,
        Self::Clip,
        Self::Optimizer,
    ];

    /// Returns the phase's name, as in `forward`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Unscale => "unscale",
            Self::Hooks => "hooks",
            Self::Clip => "clip",
            Self::Optimizer => "optimizer",
        }
    }
}

/// An interval of time within a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The start of the interval, in seconds since the first profiled step of the run began.
    pub start: f64,
    /// The length of the interval, in seconds.
    pub seconds: f64,
}

/// An interval that a step spent in one phase. A step that accumulates the gradients of several
/// batches goes through the forward phase, for example, several times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The phase.
    pub phase: Phase,
    /// The interval on the host. On CUDA this is the time in which the host enqueues the work.
    pub host: Interval,
    /// The interval on the CUDA device, from the end of the previous phase's work to the end of
    /// this phase's work. `None` without CUDA.
    pub device: Option<Interval>,
}

/// The times and the memory of a profiled optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// The epoch, counted from 0.
    pub epoch: i64,
    /// The index of the step's first batch, counted from 0 in the epoch.
    pub batch: i64,
    /// The intervals of the step's phases, in the order in which the phases ran.
    pub spans: Vec<Span>,
    /// The largest number of bytes that all tensors on the CUDA device occupied at the end of a
    /// phase. `None` without CUDA.
    pub memory: Option<u64>,
}

impl Profile {
    /// Returns the seconds that the step spent in a phase. On CUDA they are measured on the device,
    /// otherwise on the host.
    pub fn seconds(&self, phase: Phase) -> f64 {
        let spans = self.spans.iter().filter(|span| span.phase == phase);
        spans.map(|span| span.device.unwrap_or(span.host).seconds).sum()
    }
}
