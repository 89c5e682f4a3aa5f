//! The planned length of a run, and the fraction of the run that is complete.

use crate::optim::TrainingPlan;

/// The planned length of a run, in epochs and in steps.
#[derive(Debug, Clone, Copy)]
pub(in crate::trainer) struct Length {
    pub(in crate::trainer) batches_per_epoch: i64,
    pub(in crate::trainer) plan: TrainingPlan,
}

impl Length {
    /// Returns the completed fraction of the run, from 0 to 1, after this batch.
    pub(super) fn done(&self, epoch: i64, batch: i64, global_step: u64) -> f64 {
        let TrainingPlan { max_epochs, estimated_stepping_batches } = self.plan;
        let per_epoch = self.batches_per_epoch as f64;
        let batches = epoch as f64 * per_epoch + batch as f64 + 1.0;
        let of_epochs = batches / (per_epoch * max_epochs as f64);
        let of_steps = global_step as f64 / estimated_stepping_batches as f64;
        of_epochs.max(of_steps).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_is_done_follows_the_nearer_end() {
        let length = |steps| Length {
            batches_per_epoch: 10,
            plan: TrainingPlan { max_epochs: 2, estimated_stepping_batches: steps },
        };
        // `done(epoch, batch, global_step)` is the completed fraction. Each step accumulates two
        // batches, and two epochs of ten batches are ten steps. After the first batch, 1/20 is
        // complete.
        assert_eq!(length(10).done(0, 0, 0), 0.05);
        assert_eq!(length(10).done(0, 9, 5), 0.5);
        // After the last batch of the last epoch, the run is complete, although three of its ten
        // steps were skipped and only seven count in `global_step`.
        assert_eq!(length(10).done(1, 9, 7), 1.0);
        // The run has at most four steps, which end before the last epoch.
        assert_eq!(length(4).done(0, 3, 2), 0.5);
        assert_eq!(length(4).done(0, 8, 4), 1.0);
        // If two steps are skipped, the run ends four batches later, with the fourth applied step.
        assert_eq!(length(4).done(0, 9, 3), 0.75);
        assert_eq!(length(4).done(1, 1, 4), 1.0);
    }
}
