//! Interleaved measurement: the candidates take turns and train one chunk of steps each, so that a
//! temporary disturbance of the machine affects all of them equally.

use amp_core::Result;
use serde::{Deserialize, Serialize};

pub use crate::speed::{Engine, Measurement};
use crate::text::one_line;

/// A measured sequence of steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The number of steps.
    pub steps: u64,
    /// Wall-clock time in seconds, until the last kernel has ended.
    pub seconds: f64,
    /// The peak of tensor bytes; null if it is not measured.
    pub peak_memory_bytes: Option<u64>,
}

/// An engine that trains a workload in turns with others.
pub trait Candidate {
    /// Returns the candidate's engine.
    fn engine(&self) -> Engine;

    /// Does the work that is not measured: loads kernels, compiles, captures graphs.
    ///
    /// # Errors
    /// When the candidate cannot run; the benchmark then skips it.
    fn prepare(&mut self) -> Result<()>;

    /// Trains a chunk.
    ///
    /// # Errors
    /// When the candidate fails; the benchmark then skips it.
    fn chunk(&mut self) -> Result<Chunk>;
}

/// Trains a chunk of each candidate in each round, in alternating order.
pub fn interleaved(candidates: &mut [Box<dyn Candidate + '_>], rounds: usize) -> Vec<Measurement> {
    let mut measurements: Vec<Measurement> = candidates
        .iter_mut()
        .map(|candidate| Measurement {
            engine: candidate.engine(),
            rates: Vec::new(),
            peak_memory_bytes: None,
            failure: candidate.prepare().err().map(|error| one_line(&error.to_string())),
        })
        .collect();
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
