use serde_json::Value;

use crate::event::RunStart;

/// Returns the hyperparameters that loggers show for a run: the data, the precision, the seed, and
/// the hyperparameters of the model.
pub(super) fn hyperparameters(start: &RunStart) -> Vec<(String, Value)> {
    let own = [
        ("data", start.data.as_str().into()),
        ("precision", start.precision.name().into()),
        ("seed", start.seed.into()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    own.chain(start.hyperparameters.clone()).collect()
}
