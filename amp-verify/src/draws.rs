//! Compares the random numbers that a model draws under two precisions.

use std::collections::BTreeSet;

use amp_core::{precision::Precision, probe::Drawn};

/// Returns a note on the first operator in `draws` that drew random numbers in another dtype than
/// in `base_draws`, which are the draws of a run under the precision `base`. The note names the
/// method of `cx` to use in the operator's place. Returns `None` if there is no such operator.
pub(crate) fn difference(
    draws: &BTreeSet<Drawn>,
    base: Precision,
    base_draws: &BTreeSet<Drawn>,
) -> Option<String> {
    let (drawn, dtype) = Drawn::first_difference(draws, base_draws)?;
    Some(format!(
        "{drawn} numbers, but {dtype} numbers under {base}. libtorch draws other values in \
         another dtype: use `cx.{}`, which draws in float32 under every precision",
        drawn.replacement()
    ))
}
