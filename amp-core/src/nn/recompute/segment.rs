//! Groups of layers whose activations are recomputed together.

use std::{fmt, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{is_trained, without_sections};
use crate::{
    Error, Result,
    nn::{Context, Module, container},
};

/// Layers whose activations are recomputed together: neighbouring layers of a container, or a
/// single module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The dotted path of the container or of the single module.
    pub path: String,
    /// The indices of the layers in the container; `None` if the segment is the whole module.
    pub layers: Option<Range<usize>>,
}

impl Segment {
    /// Returns whether the segment `behind` begins at the layer after the last layer of this
    /// segment, in the same container.
    pub(crate) fn meets(&self, behind: &Self) -> bool {
        match (&self.layers, &behind.layers) {
            (Some(own), Some(other)) => self.path == behind.path && own.end == other.start,
            _ => false,
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Range { start, end }) = self.layers.clone() else {
            return f.write_str(&self.path);
        };
        let dot = if self.path.is_empty() { "" } else { "." };
        write!(f, "{}{dot}{start}", self.path)?;
        match end - start {
            0 | 1 => Ok(()),
            _ => write!(f, "-{}", end - 1),
        }
    }
}

/// Runs the layers of a container. The activations of layers in one of the `segments` are
/// recomputed in the backward pass.
pub(in crate::nn) fn forward<M: Module>(
    layers: &[M],
    segments: &[Segment],
    input: &Tensor,
    cx: &Context,
) -> Result<Tensor> {
    let path = cx.path().to_owned();
    let own = segments.iter().filter(|segment| segment.path == path);
    let (mut x, mut done) = (input.shallow_clone(), 0);
    for segment in own.filter_map(|segment| segment.layers.clone()) {
        let Range { start, end } = segment;
        let (Some(before), Some(within)) = (layers.get(done..start), layers.get(start..end)) else {
            return Err(Error::config(format!(
                "the segment {start}..{end} cannot be checkpointed: segments must be in order, must \
                 not overlap, and must end at the container's {} layers or before",
                layers.len()
            )));
        };
        x = container::run(before, done, &x, cx)?;
        x = checkpointed(within, start, &x, cx)?;
        done = end;
    }
    container::run(&layers[done..], done, &x, cx)
}

/// Runs consecutive layers of a container without keeping their activations. `place` is the index
/// of the first of these layers in the container.
fn checkpointed<M: Module>(
    layers: &[M],
    place: usize,
    input: &Tensor,
    cx: &Context,
) -> Result<Tensor> {
    let shared: Option<Vec<Arc<dyn Module>>> = layers.iter().map(Module::shared).collect();
    let shared = shared.ok_or_else(|| {
        Error::config(format!(
            "layer {place} or a later layer cannot be recomputed, because its `Module::shared` returns `None`"
        ))
    })?;
    if !layers.iter().any(|layer| is_trained(layer, input)) {
        return tch::no_grad(|| container::run(layers, place, input, cx));
    }
    let again = cx.recomputing();
    let _place = without_sections(cx);
    super::run(
        input,
        || container::run(layers, place, input, cx),
        move |input| container::run(&shared, place, input, &again),
    )
}
