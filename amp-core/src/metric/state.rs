//! The state of a metric, which is merged over the batches of an epoch.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// How the states of several batches are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Merge {
    Sum,
    Concat,
}

/// The state of a metric for one batch, or for several merged batches. It consists of tensors on
/// the device and a weight on the host. Each tensor is a sum over batches or a concatenation of
/// rows. No tensor is read back to the host until the metric's value is computed.
#[derive(Debug, Default)]
pub struct MetricState {
    pub(crate) parts: Vec<Part>,
    pub(crate) weight: f64,
}

#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) merge: Merge,
    /// The sum over all batches (one tensor), or the rows of each batch (one tensor per batch).
    pub(crate) pieces: Vec<Tensor>,
}

impl MetricState {
    /// Makes the state for [`Reduction::Mean`](super::Reduction::Mean): a sum over the batch, and
    /// the batch's weight. The metric's value is the sum over all batches divided by the sum of
    /// their weights.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn mean(sum: &Tensor, weight: f64) -> Result<Self> {
        Ok(Self { weight, ..Self::default().and_sum(sum)? })
    }

    /// Makes a state of counts. The counts of all batches are added up in f64. `counts` may have
    /// any shape, but the shape must be the same for every batch.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn sum(counts: &Tensor) -> Result<Self> {
        Self::default().and_sum(counts)
    }

    /// Makes a state of rows, one for each example. `rows` has the shape `[n, …]`. At the end of
    /// the epoch, the rows of all batches are concatenated in the order of the batches. The rows
    /// stay on the device until then, so memory grows with the number of examples.
    pub fn concat(rows: &Tensor) -> Self {
        Self::default().and_concat(rows)
    }

    /// Adds a tensor of counts to the state, as in [`sum`](Self::sum).
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn and_sum(mut self, counts: &Tensor) -> Result<Self> {
        let pieces = vec![counts.f_to_kind(Kind::Double)?];
        self.parts.push(Part { merge: Merge::Sum, pieces });
        Ok(self)
    }

    /// Adds a tensor of rows to the state, as in [`concat`](Self::concat).
    #[must_use]
    pub fn and_concat(mut self, rows: &Tensor) -> Self {
        let pieces = vec![rows.shallow_clone()];
        self.parts.push(Part { merge: Merge::Concat, pieces });
        self
    }

    /// Merges the state of a later batch into this state.
    ///
    /// # Errors
    /// When the tensors of the states have different shapes.
    pub fn merge(&mut self, later: &Self) -> Result<()> {
        if !self.is_like(later) {
            return Err(self.differs(later));
        }
        self.add(later, false)
    }

    /// Returns the tensors of the state. The rows of all batches are joined into one tensor.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn tensors(&self) -> Result<Vec<Tensor>> {
        let parts = self.parts.iter().map(|part| match part.pieces.as_slice() {
            [one] => Ok(one.shallow_clone()),
            several => Ok(Tensor::f_cat(several, 0)?),
        });
        parts.collect()
    }

    /// Returns the sum of the batches' weights, by which the sum of a [`mean`](Self::mean) is
    /// divided.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|(own, other)| own.is_like(other))
    }

    /// Builds the error for a batch whose state has other shapes than the states of earlier
    /// batches.
    pub(crate) fn differs(&self, other: &Self) -> crate::Error {
        let sizes = |state: &Self| -> Vec<Vec<i64>> {
            state.parts.iter().filter_map(|part| Some(part.pieces.last()?.size())).collect()
        };
        crate::Error::config(format!(
            "the counts of earlier batches have the shape {:?}, but those of this batch have the shape {:?}",
            sizes(self),
            sizes(other)
        ))
    }

    /// Merges the state of a later batch into this state. The two states must have the same kinds
    /// of tensors in the same order. `owned` states that no other state shares the tensors of this
    /// state, so that its sums can be updated in place.
    pub(crate) fn add(&mut self, later: &Self, owned: bool) -> Result<()> {
        for (part, later) in self.parts.iter_mut().zip(&later.parts) {
            match (part.merge, part.pieces.as_mut_slice(), later.pieces.as_slice()) {
                (Merge::Sum, [sum], [counts]) => {
                    // The counts may be on another device than the sum: if a hook logs the loss,
                    // the loss is on the host after steps that ran as CUDA graphs, and on the
                    // device after other steps.
                    let counts = counts.f_to_device(sum.device())?;
                    match owned {
                        true => _ = sum.f_add_(&counts)?,
                        false => *sum = sum.f_add(&counts)?,
                    }
                }
                _ => part.pieces.extend(later.pieces.iter().map(Tensor::shallow_clone)),
            }
        }
        self.weight += later.weight;
        Ok(())
    }

    /// Returns an empty state of the same metric: the sums are zero, and there are no rows.
    pub(crate) fn nothing_like(&self) -> Result<Self> {
        let parts = self.parts.iter().map(|part| {
            let pieces = match part.merge {
                Merge::Sum => part.pieces.iter().map(Tensor::f_zeros_like).collect(),
                Merge::Concat => Ok(Vec::new()),
            };
            Ok(Part { merge: part.merge, pieces: pieces? })
        });
        Ok(Self { parts: parts.collect::<Result<_>>()?, weight: 0.0 })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        let parts = self.parts.iter().map(|part| Part {
            merge: part.merge,
            pieces: part.pieces.iter().map(Tensor::shallow_clone).collect(),
        });
        Self { parts: parts.collect(), weight: self.weight }
    }

    /// Copies the state to this device. The copy shares no memory with this state.
    pub(crate) fn copied_to(&self, device: Device) -> Result<Self> {
        let mut copy = self.shallow_clone();
        for part in &mut copy.parts {
            for piece in &mut part.pieces {
                *piece = piece.f_to_device_(device, piece.kind(), false, true)?;
            }
        }
        Ok(copy)
    }
}

impl Part {
    fn is_like(&self, other: &Self) -> bool {
        let sizes = |part: &Self| part.pieces.last().map(Tensor::size);
        let (Some(own), Some(given)) = (sizes(self), sizes(other)) else {
            return self.merge == other.merge;
        };
        self.merge == other.merge
            && match self.merge {
                Merge::Sum => own == given,
                Merge::Concat => own.len() == given.len() && own.get(1..) == given.get(1..),
            }
    }
}
