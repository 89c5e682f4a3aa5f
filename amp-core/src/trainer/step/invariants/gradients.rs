//! Checks that no gradient of an earlier step is left.

use super::{Invariant, Moment, Rule, run_state::RunView};
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
                let gradient = parameter.tensor.f_grad()?;
                // A gradient that consists of zeros is accepted, because adding it changes nothing.
                if gradient.defined() && gradient.f_any()?.f_int64_value(&[])? != 0 {
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
