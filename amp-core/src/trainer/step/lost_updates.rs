//! Detects updates that are smaller than the spacing of 16-bit weights, so that they change no
//! weight.

use tch::{Kind, Tensor};

use super::{
    sampled_elements::{sample, spacing},
    state::StepState,
};
use crate::{
    Error, Result,
    optim::WeightUpdate,
    precision::{Precision, dtype_name},
    trainer::config::TrainerConfig,
};

/// A note is emitted if at least this fraction of the weights with a gradient did not change.
const MANY: f64 = 0.25;

/// About how many elements of each parameter are compared before and after a step. The number is
/// small, so that the copies need little memory.
const SAMPLE: i64 = 1024;

/// The 16-bit weights, each with the values of its sampled elements before a step.
pub(super) struct Before(Vec<(Tensor, Tensor)>);

/// Returns whether 16-bit weights may lose updates under these options.
fn may_be_lost(config: &TrainerConfig, precision: Precision) -> bool {
    let narrow = matches!(precision.storage(), Kind::Half | Kind::BFloat16);
    narrow && config.numerics.weight_update == WeightUpdate::RoundToNearest
}

impl StepState<'_> {
    /// Returns whether the next step is checked for lost updates. `in_flight` is the number of
    /// steps in flight before it. Steps 1, 10, 100, … are checked, until lost updates are found.
    /// With a learning-rate schedule, step 1 is not checked, because schedules often begin with a
    /// tiny rate.
    pub(super) fn looks_for_lost_updates(&self, in_flight: u64) -> bool {
        let step = self.counts.applied + in_flight + 1;
        let power = 10_u64.checked_pow(step.ilog10()).is_some_and(|power| power == step);
        let scheduled = self.optim.scheduled.iter().any(|one| one.is_scheduled());
        power
            && !self.told.lost_updates
            && may_be_lost(self.config, self.policy.precision)
            && (step > 1 || !scheduled)
    }

    /// Copies the sampled elements of the 16-bit weights, if the next step is checked.
    pub(super) fn weights_before(&self) -> Result<Option<Before>> {
        if !self.looks_for_lost_updates(0) {
            return Ok(None);
        }
        let parameters =
            self.optim.scheduled.iter().flat_map(|one| one.optimizer.parameters().iter());
        let narrow = parameters
            .map(|own| &own.tensor)
            .filter(|own| matches!(own.kind(), Kind::Half | Kind::BFloat16));
        let pairs = narrow.map(|own| {
            let before =
                tch::no_grad(|| sample(own, SAMPLE)?.f_detach_copy().map_err(Error::from))?;
            Ok((own.shallow_clone(), before))
        });
        Ok(Some(Before(pairs.collect::<Result<_>>()?)))
    }

    /// Compares the sampled weights with the values that they had before the step that was just
    /// applied. Returns a note if many weights with a gradient did not change.
    pub(super) fn lost_updates(&mut self, before: &Before) -> Result<Option<String>> {
        let (mut lost, mut all) = (0.0, 0.0);
        for (weight, before) in &before.0 {
            let gradient = weight.f_grad()?;
            if !gradient.defined() {
                continue;
            }
            let updated = sample(&gradient, SAMPLE)?.f_ne(0.0)?;
            let unchanged = sample(weight, SAMPLE)?.f_eq_tensor(before)?.f_logical_and(&updated)?;
            let of = spacing(weight, SAMPLE) as f64;
            all += of * updated.f_sum(Kind::Double)?.f_double_value(&[])?;
            lost += of * unchanged.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        if self.lr == 0.0 || all == 0.0 || lost < MANY * all {
            return Ok(None);
        }
        self.told.lost_updates = true;
        let kind = dtype_name(self.policy.precision.storage());
        Ok(Some(format!(
            "{:.0} % of the weights with a gradient did not change in step {} at the learning rate {:.2e}: \
             the updates are smaller than {kind}'s spacing and are lost; --weight-update master-weights or, for \
             bfloat16, stochastic-rounding keeps them",
            100.0 * lost / all,
            self.counts.applied,
            self.lr,
        )))
    }
}
