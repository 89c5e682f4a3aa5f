//! Checks that memory measurements are complete.

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{Result, memory};

/// Checks that no memory meter reports too little memory because another meter was started before
/// the first one ended.
#[derive(Default)]
pub(super) struct MemoryOverStep {
    /// The number of such measurements on this thread at the last check.
    known: u64,
}

impl Rule for MemoryOverStep {
    fn invariant(&self) -> Invariant {
        Invariant::MemoryOverStep
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::Start, Moment::StepEnds, Moment::EpochEnds]
    }

    fn violation(&mut self, moment: Moment, _: &RunView<'_>) -> Result<Option<String>> {
        let all = memory::readings_cut_short();
        let new = all - std::mem::replace(&mut self.known, all);
        Ok((moment != Moment::Start && new > 0).then(|| {
            format!(
                "{new} readings of a `MemoryMeter` are too low, because another meter was started \
                 before the first had ended: a hook or a callback nests meters; use one at a time"
            )
        }))
    }
}
