//! Checks that no operation of a training step or a validation broadcasts an output and a target by
//! mistake.

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{
    Result,
    ffi::{Broadcast, Watched, WatchedBroadcasts},
};

/// Checks that no elementwise operation combines an output `[N, 1]` with a target `[N]`, or an
/// output `[N]` with a target `[N, 1]`.
pub(super) struct ShapesFit {
    /// Whether every checked step and every validation is watched. If false, only the first step and
    /// the first validation are watched.
    all: bool,
    /// Whether a step has been watched, and whether a validation has been watched.
    looked: [bool; 2],
    watch: Option<(Watched, WatchedBroadcasts)>,
}

impl ShapesFit {
    pub(super) fn new(all: bool) -> Self {
        Self { all, looked: [false; 2], watch: None }
    }
}

impl Rule for ShapesFit {
    fn invariant(&self) -> Invariant {
        Invariant::ShapesFit
    }

    fn moments(&self) -> &'static [Moment] {
        &[
            Moment::GradientsCleared,
            Moment::StepEnds,
            Moment::EvaluationBegins,
            Moment::EvaluationEnds,
        ]
    }

    fn violation(&mut self, moment: Moment, _: &RunView<'_>) -> Result<Option<String>> {
        let watched = match moment {
            Moment::GradientsCleared => Some(Watched::Training),
            Moment::EvaluationBegins => Some(Watched::Validation),
            _ => None,
        };
        if let Some(watched) = watched {
            // An earlier watch is still there if its step or validation ended with an error.
            self.watch = None;
            if self.all || !self.looked[watched as usize] {
                self.watch = WatchedBroadcasts::start(watched)?.map(|watch| (watched, watch));
            }
            return Ok(None);
        }
        let Some((watched, watch)) = self.watch.take() else { return Ok(None) };
        self.looked[watched as usize] = true;
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
