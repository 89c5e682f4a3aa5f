//! Finds out whether a data set returns different examples in each epoch.

use super::{SharedDataset, batch::AnyBatch};
use crate::{Result, precision::is_floating, random::Draws};

/// The number of examples that are compared between two epochs.
const COMPARED: i64 = 64;

/// Reads the first examples of the set twice, as in two epochs, and returns whether they differ.
/// They differ if the set seeds a generator with its [`Draws`], or takes random numbers from
/// libtorch's generator. A set that changes less than one in 64 examples at random may be missed.
///
/// # Errors
/// When an example cannot be read.
pub(super) fn differs_between_epochs(set: &SharedDataset) -> Result<bool> {
    let indices: Vec<i64> = (0..COMPARED.min(set.len())).collect();
    // `watched` seeds libtorch's generator for the epoch if the set uses it.
    let epoch = |epoch: u64| -> Result<AnyBatch> {
        let draws = Draws::new(0, epoch);
        draws.watched(0, || set.gather_drawing(&indices, draws))?.0
    };
    differ(&epoch(0)?, &epoch(1)?)
}

/// Returns whether two batches differ in any element.
fn differ(one: &AnyBatch, two: &AnyBatch) -> Result<bool> {
    for ((_, one), (_, two)) in one.tensors().zip(two.tensors()) {
        // NaN stands for a missing value of a table, so a NaN is equal to a NaN.
        let is_equal = match one.size() == two.size() && is_floating(one.kind()) {
            true => one.f_allclose(two, 0.0, 0.0, true)?,
            false => one.f_equal(two)?,
        };
        if !is_equal {
            return Ok(true);
        }
    }
    Ok(false)
}
