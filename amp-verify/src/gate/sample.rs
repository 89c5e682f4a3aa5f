//! The examples on which layers, groups of layers and devices are compared.

use amp_core::{Result, data::AnyBatch, nn::parameters};

use crate::case::Case;

/// Larger models are compared on the fewest examples over which statistics of a batch can be taken: a CPU, and
/// products in float64, take minutes for more.
const LARGE: usize = 1 << 24;
const OF_LARGE: i64 = 2;

/// Returns the first examples of the training set: a batch, or fewer for a large model.
pub(super) fn sample(case: &Case) -> Result<AnyBatch> {
    let model = case.build()?;
    let numbers: usize = parameters(model.as_ref()).iter().map(|own| own.tensor.numel()).sum();
    case.data.train.head(examples(case.data.batch_size, numbers))
}

fn examples(batch: i64, parameters: usize) -> i64 {
    if parameters > LARGE { batch.min(OF_LARGE) } else { batch }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_models_are_compared_on_few_examples() {
        assert_eq!(examples(32, 1 << 24), 32);
        assert_eq!(examples(32, 25_000_000), 2);
        assert_eq!(examples(1, 25_000_000), 1);
    }
}
