use crate::{event::Event, log::Logged};

/// A number that a run reported, and its tag. The tags are those of
/// [`MemoryLogger`](super::MemoryLogger).
pub(super) struct Scalar {
    pub(super) tag: String,
    pub(super) step: u64,
    pub(super) value: f64,
}

/// Returns the numbers that an event contains, with their tags.
pub(super) fn scalars(event: &Event) -> Vec<Scalar> {
    let scalar = |tag: &str, step: u64, value: f64| Scalar { tag: tag.to_owned(), step, value };
    match event {
        Event::Logged { global_step, values } => values
            .iter()
            .map(|Logged { name, value, .. }| scalar(&format!("{name}_step"), *global_step, *value))
            .collect(),
        Event::Validated(seen) => {
            let values = seen.val.iter();
            values.map(|logged| scalar(&logged.name, seen.global_step, logged.value)).collect()
        }
        Event::EpochEnd(end) => {
            let step = end.global_step;
            let values = end.train.iter().chain(&end.val);
            let values = values.map(|Logged { name, value, .. }| scalar(name, step, *value));
            let own = [("epoch", end.epoch as f64), ("lr", end.lr)];
            values.chain(own.map(|(tag, value)| scalar(tag, step, value))).collect()
        }
        Event::Scale { attempt, scale } => vec![scalar("grad_scaler/scale", *attempt, *scale)],
        Event::Skipped(skipped) => vec![scalar("grad_scaler/skipped", skipped.attempt, 1.0)],
        _ => Vec::new(),
    }
}
