use serde_json::Value;

use crate::event::RunStart;

/// What a run is: the trainer's choices that runs differ in, and the model's hyperparameters.
pub(super) fn hyperparameters(start: &RunStart) -> Vec<(String, Value)> {
    let own = [
        ("data", start.data.as_str().into()),
        ("precision", start.precision.name().into()),
        ("seed", start.seed.into()),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    own.chain(start.hyperparameters.clone()).collect()
}
