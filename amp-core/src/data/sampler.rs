//! The order in which an epoch's examples are drawn.

/// Draws the examples of each epoch: all of them, in order or in a permutation that depends on the
/// seed and the epoch alone, whatever the device, the precision and the number of batches read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sampler {
    InOrder,
    Shuffled { seed: u64 },
}

impl Sampler {
    /// The places of `count` examples in the order of this epoch; `None` for the set's own order.
    pub(super) fn order(self, count: i64, epoch: u64) -> Option<Vec<i64>> {
        let Self::Shuffled { seed } = self else { return None };
        // Two generators, so that (seed, epoch) and (seed + 1, epoch - 1) have nothing in common.
        let mut rng = fastrand::Rng::with_seed(fastrand::Rng::with_seed(seed).u64(..) ^ epoch);
        let mut order: Vec<i64> = (0..count).collect();
        rng.shuffle(&mut order);
        Some(order)
    }
}
