//! Checks that validation runs in evaluation mode.

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{Result, ffi::WatchedModes, nn};

/// Checks that no operator and no layer runs in training mode during a validation.
pub(super) struct EvaluationMode {
    /// Whether the operators of every validation are checked. If false, only those of the first
    /// validation are checked.
    all: bool,
    looked: bool,
    watch: Option<WatchedModes>,
}

impl EvaluationMode {
    pub(super) fn new(all: bool) -> Self {
        Self { all, looked: false, watch: None }
    }
}

impl Rule for EvaluationMode {
    fn invariant(&self) -> Invariant {
        Invariant::EvaluationMode
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::EvaluationBegins, Moment::EvaluationEnds]
    }

    fn violation(&mut self, moment: Moment, _: &RunView<'_>) -> Result<Option<String>> {
        if moment == Moment::EvaluationBegins {
            let _ = nn::take_trained_in_evaluation();
            self.watch = (self.all || !self.looked).then(WatchedModes::start).transpose()?;
            return Ok(None);
        }
        let trained = self.watch.as_ref().map(WatchedModes::trained).transpose()?.flatten();
        (self.looked, self.watch) = (true, None);
        let what = match (nn::take_trained_in_evaluation(), trained) {
            (_, Some(operator)) => format!("`{operator}` runs"),
            (true, None) => "layers run".to_owned(),
            (false, None) => return Ok(None),
        };
        Ok(Some(format!(
            "{what} in training mode, so that dropout is active or batch norm uses the batch's statistics: the \
             model ignores the mode of the step or makes a `Context` of its own; pass on `step.context()`, \
             and let your own layers ask this context for the mode (`is_training`, `drops_out`)"
        )))
    }
}
