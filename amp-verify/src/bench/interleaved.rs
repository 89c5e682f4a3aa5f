//! Interleaved measurement: the engines to compare (the candidates) take turns. In each turn, an
//! engine trains a few steps, called a chunk. A temporary disturbance of the machine therefore
//! affects all engines equally.

use amp_core::{Error, Result};
use serde::{Deserialize, Serialize};

pub use crate::speed::{Engine, Measurement};
use crate::text::one_line;

/// A sequence of training steps whose total time was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The number of steps in the sequence.
    pub steps: u64,
    /// Wall-clock time in seconds, until the last kernel has ended.
    pub seconds: f64,
    /// The largest number of bytes that tensors occupied at one time. `None` if memory is not
    /// measured.
    pub peak_memory_bytes: Option<u64>,
}

/// An engine that trains a workload, in turns with the other engines.
pub trait Candidate {
    /// Returns which engine is measured.
    fn engine(&self) -> Engine;

    /// Starts the work of [`prepare`](Self::prepare) and returns at once, so that several engines
    /// can prepare at the same time. [`prepare`](Self::prepare) then waits until the work is done.
    ///
    /// # Errors
    /// When the engine cannot run. The benchmark then skips this engine.
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// Does all work that must not be measured: loads kernels, compiles the model, captures CUDA
    /// graphs.
    ///
    /// # Errors
    /// When the engine cannot run. The benchmark then skips this engine.
    fn prepare(&mut self) -> Result<()>;

    /// Returns the time in seconds from building the model to the end of the first training step.
    /// Returns `None` before [`prepare`](Self::prepare), or if the time is not measured.
    fn first_step_seconds(&self) -> Option<f64> {
        None
    }

    /// Trains a few steps (a chunk) and returns the measured time.
    ///
    /// # Errors
    /// When the training fails. The benchmark then skips this engine.
    fn chunk(&mut self) -> Result<Chunk>;
}

/// Prepares the engines to compare: first those of this trainer, one after another, then all other
/// engines at the same time. Returns one measurement for each engine. Its list of rates (steps per
/// second) is still empty.
fn prepare(candidates: &mut [Box<dyn Candidate + '_>]) -> Vec<Measurement> {
    let mut failures = vec![None; candidates.len()];
    let text = |error: Error| one_line(&error.to_string());
    let mut each = |ours: bool, act: fn(&mut dyn Candidate) -> Result<()>| {
        let all = candidates.iter_mut().zip(&mut failures);
        for (candidate, failure) in all.filter(|(one, _)| one.engine().is_ours() == ours) {
            if failure.is_none() {
                *failure = act(candidate.as_mut()).err().map(text);
            }
        }
    };
    each(true, |candidate| candidate.prepare());
    each(false, |candidate| candidate.begin());
    each(false, |candidate| candidate.prepare());
    let made = candidates.iter().zip(failures).map(|(candidate, failure)| Measurement {
        engine: candidate.engine(),
        rates: Vec::new(),
        peak_memory_bytes: None,
        first_step_seconds: candidate.first_step_seconds(),
        failure,
    });
    made.collect()
}

/// Prepares the engines to compare. Then, in each round, trains a few steps with each engine. In
/// every second round, the engines take turns in reverse order.
pub fn interleaved(candidates: &mut [Box<dyn Candidate + '_>], rounds: usize) -> Vec<Measurement> {
    let mut measurements = prepare(candidates);
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let measurement = &mut measurements[at];
            if measurement.failure.is_some() {
                continue;
            }
            match candidates[at].chunk() {
                Ok(chunk) => {
                    measurement.rates.push(chunk.steps as f64 / chunk.seconds);
                    measurement.peak_memory_bytes =
                        measurement.peak_memory_bytes.max(chunk.peak_memory_bytes);
                }
                Err(error) => measurement.failure = Some(one_line(&error.to_string())),
            }
        }
    }
    measurements
}
