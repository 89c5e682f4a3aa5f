//! Checks that no operation of a training step broadcasts an output and a target by mistake.

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{
    Result,
    ffi::{Broadcast, WatchedBroadcasts},
};

/// Checks that no elementwise operation combines an output `[N, 1]` with a target `[N]`.
pub(super) struct ShapesFit {
    /// Whether every checked step is watched. If false, only the first step is watched.
    all: bool,
    looked: bool,
    watch: Option<WatchedBroadcasts>,
}

impl ShapesFit {
    pub(super) fn new(all: bool) -> Self {
        Self { all, looked: false, watch: None }
    }
}

impl Rule for ShapesFit {
    fn invariant(&self) -> Invariant {
        Invariant::ShapesFit
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::GradientsCleared, Moment::StepEnds]
    }

    fn violation(&mut self, moment: Moment, _: &RunView<'_>) -> Result<Option<String>> {
        if moment == Moment::GradientsCleared {
            self.watch = (self.all || !self.looked).then(WatchedBroadcasts::start).transpose()?;
            return Ok(None);
        }
        let Some(watch) = self.watch.take() else { return Ok(None) };
        self.looked = true;
        let text = |Broadcast { operator, operands }| {
            format!(
                "`{operator}` combines tensors of the shapes {operands}, so that libtorch broadcasts them and \
                 combines each example with every other example: give both the same shape, as \
                 `target.unsqueeze(1)` or `output.squeeze_dim(1)` does; if all pairs are meant, say so with \
                 `unsqueeze(0)`"
            )
        };
        Ok(watch.first()?.map(text))
    }
}
