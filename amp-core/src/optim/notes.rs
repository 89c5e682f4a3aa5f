//! Notes for the user about an optimizer's options.

use tch::Kind;

use super::{
    Algorithm, Moments, Slot, Storage,
    state::SlotShape,
    working_tensors::{Working, working},
};

/// Returns a note if the optimizer computes in f32 because of the dtypes of its parameters, or if it
/// has no running averages to which [`Storage::moments`] could apply. `kinds` are the dtypes of the
/// parameters, and `slots` is what the optimizer stores for them.
pub(super) fn of<'s, A: Algorithm>(
    mut kinds: impl Iterator<Item = Kind>,
    slots: impl IntoIterator<Item = &'s Slot>,
    storage: Storage,
) -> Option<String> {
    let upcast = kinds.find_map(|kind| {
        let reason = A::upcasts(kind)?;
        let is_widened = working::<A>(kind, storage) == Working::Copies { stochastic: false };
        is_widened.then(|| format!("{} computes in float32: {reason}", A::NAME))
    });
    let mut shapes = slots.into_iter().map(|slot| &slot.shape);
    let has_averages = shapes.any(|shape| matches!(shape, SlotShape::Parameter { .. }));
    let unused = (storage.moments != Moments::Full && !has_averages).then(|| {
        let (moments, name) = (storage.moments, A::NAME);
        format!(
            "moments = {moments} has no effect: {name} stores no running averages with its options"
        )
    });
    let notes: Vec<String> = upcast.into_iter().chain(unused).collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}
