//! Checks that no gradient of an earlier step is left.

use super::{super::first_gradients::has_gradient, Invariant, Moment, Rule, run_state::RunView};
use crate::Result;

/// Checks that no gradient is left when a step begins.
pub(super) struct GradientsAreCleared;

impl Rule for GradientsAreCleared {
    fn invariant(&self) -> Invariant {
        Invariant::GradientsAreCleared
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::GradientsCleared]
    }

    fn violation(&mut self, _: Moment, seen: &RunView<'_>) -> Result<Option<String>> {
        for scheduled in seen.scheduled() {
            for parameter in scheduled.optimizer.parameters().iter() {
                // A gradient that consists of zeros is accepted, because adding it changes nothing.
                if has_gradient(&parameter.tensor)? {
                    return Ok(Some(format!(
                        "`{}` still has the last step's gradient, which would be added to the \
                         new one: `zero_grad` of {} does not clear it; let it call the trait's \
                         default `zero_grad`",
                        parameter.name,
                        scheduled.optimizer.name()
                    )));
                }
            }
        }
        Ok(None)
    }
}
