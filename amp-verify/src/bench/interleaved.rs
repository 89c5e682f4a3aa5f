//! Interleaved measurement: the candidates take turns, a chunk of steps each, so that a temporary
//! disturbance of the machine affects them equally.

use amp_core::Result;
use serde::{Deserialize, Serialize};

pub use crate::speed::{Engine, Measurement};
use crate::text::one_line;

/// Some steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The number of steps.
    pub steps: u64,
    /// Wall-clock seconds, to the last kernel's end.
    pub seconds: f64,
    /// The peak of tensor bytes; null if it is not measured.
    pub peak_memory_bytes: Option<u64>,
}

/// A candidate, which trains a workload in turns with the others.
pub trait Candidate {
    /// The candidate's engine.
    fn engine(&self) -> Engine;

    /// Does work that is not measured: loads kernels, compiles, captures.
    ///
    /// # Errors
    /// When the candidate cannot run; it is then left out.
    fn prepare(&mut self) -> Result<()>;

    /// Trains a chunk.
    ///
    /// # Errors
    /// When the candidate fails; it is then left out.
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
