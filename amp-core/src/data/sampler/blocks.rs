use super::{Epoch, Sampler, digest};
use crate::{Error, Result};

/// Shuffles a set that consists of blocks, such as files or row groups, so that only a few blocks
/// must be in memory at a time. First shuffles the order of the blocks. Then divides this order
/// into groups of a few blocks, and shuffles the examples within each group.
///
/// ```
/// use amp_core::{Result, data::{Epoch, Sampler, ShuffledBlocks}};
///
/// # fn main() -> Result<()> {
/// let order = ShuffledBlocks::new(vec![3, 3, 3], 1)?
///     .order(&Epoch { seed: 1, epoch: 0, examples: 9, batch_size: 3 })?;
/// for block in order.chunks(3) {
///     assert!(block.iter().all(|index| index / 3 == block[0] / 3));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ShuffledBlocks {
    lengths: Vec<i64>,
    together: usize,
}

impl ShuffledBlocks {
    /// Creates a sampler for a set of consecutive blocks. `lengths` contains the number of examples
    /// of each block. The order of the blocks is shuffled first. Each group of `together` blocks
    /// that follow each other in the new order is then taken as one, and its examples are shuffled.
    ///
    /// # Errors
    /// When a length is negative, or `together` is 0.
    pub fn new(lengths: Vec<i64>, together: usize) -> Result<Self> {
        if let Some(length) = lengths.iter().find(|length| **length < 0) {
            return Err(Error::config(format!(
                "a block has the length {length}, but a length must be at least 0"
            )));
        }
        match together {
            0 => Err(Error::config(
                "`together` is 0, but at least 1 block must be shuffled at a time",
            )),
            _ => Ok(Self { lengths, together }),
        }
    }
}

impl Sampler for ShuffledBlocks {
    fn name(&self) -> String {
        let digest = digest(self.lengths.iter().map(|length| length.to_le_bytes()));
        format!("blocks {digest}, {} together", self.together)
    }

    fn order(&self, epoch: &Epoch) -> Result<Vec<i64>> {
        let (all, examples) = (self.lengths.iter().sum::<i64>(), epoch.examples);
        if all != examples {
            return Err(Error::config(format!(
                "the blocks have {all} examples in total, but the set has {examples}: give the \
                 lengths of the set's blocks"
            )));
        }
        let mut rng = epoch.rng();
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some((*end - length, *end))
        });
        let mut blocks: Vec<(i64, i64)> = ends.collect();
        rng.shuffle(&mut blocks);
        let mut order = Vec::with_capacity(all.cast_unsigned() as usize);
        for blocks in blocks.chunks(self.together) {
            let mut mixed: Vec<i64> = blocks.iter().flat_map(|(start, end)| *start..*end).collect();
            rng.shuffle(&mut mixed);
            order.extend(mixed);
        }
        Ok(order)
    }
}
