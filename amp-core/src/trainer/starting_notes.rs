//! The notes that a run prints at its start, about options that are valid but unusual.

use super::{fit::Run, step::full_gradients_note};
use crate::optim::TrainingPlan;

impl Run<'_, '_> {
    /// Returns notes about the options of the optimizers and schedules, and of the run.
    pub(super) fn starting_notes(&self) -> Vec<String> {
        let scheduled = &self.state.optim.scheduled;
        let optimizers = scheduled.iter().filter_map(|scheduled| scheduled.optimizer.note());
        let length = self.config.length(self.loader.batches(), self.max_epochs);
        let no_validation = self.validations.note(length).filter(|_| !self.val.is_empty());
        // If this is a short trial of a longer run, these notes are about the longer run, whose
        // length is `plan`.
        let last = self.config.last_position(self.loader.batches(), self.plan);
        let planned = self.known_plan(last.0);
        let schedules = scheduled.iter().filter_map(|scheduled| scheduled.note(planned));
        let averaging = self.config.optimization.averaging.and_then(|one| one.note(last.0));
        optimizers
            .chain(schedules)
            .chain(no_validation)
            .chain(full_gradients_note(self.config))
            .chain(self.freezing.note(last))
            .chain(averaging)
            .collect()
    }

    /// Returns the length for which the run is planned. `last_epoch` is the index of its last epoch.
    /// The length is not known if a time limit may end the run, or if the model itself decides when
    /// an optimizer steps.
    fn known_plan(&self, last_epoch: i64) -> Option<TrainingPlan> {
        let is_known = self.loops.max_time.is_none() && !self.model.optimizes_manually();
        is_known.then_some(TrainingPlan { max_epochs: last_epoch + 1, ..self.plan })
    }
}
