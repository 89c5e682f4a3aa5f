//! Compares the results of the first seed with the model's golden: the recorded results of an
//! earlier run.

use std::{fs, path::Path};

use amp_core::precision::Precision;

use super::{
    outcome::Outcome,
    reason::{Failure, Reason},
};
use crate::{
    golden::{self, Agreement, Figures, Golden, Moved},
    length::Length,
};

/// The run whose results are compared with a golden (recorded results): a model, a seed and a
/// precision.
pub(super) struct Case<'a> {
    pub(super) model: &'a str,
    pub(super) length: Length,
    /// Whether options of the gate change the model's hyperparameters, its data or the length of
    /// training. If so, the results cannot be compared with recorded results.
    pub(super) is_changed: bool,
    pub(super) seed: u64,
    pub(super) precision: Precision,
}

impl Case<'_> {
    /// Returns a failure for each value that differs from the golden (the recorded results) by more
    /// than its tolerance. If the results cannot be compared with the golden, returns one failure
    /// with the reason.
    pub(super) fn failures(&self, folder: &Path, base: &Outcome, own: &Outcome) -> Vec<Failure> {
        let moved = match self.moved(folder, base, own) {
            Ok(moved) => moved,
            Err(why) => return vec![Failure::new(Reason::NotComparable, why)],
        };
        let failure = |moved: Moved| {
            let Moved { precision, figure, golden, found, allowed } = moved;
            let text = format!(
                "{precision} {figure} is {found}, but {golden} in the golden (accepted: {allowed})"
            );
            Failure::new(Reason::Moved, text)
        };
        moved.into_iter().map(failure).collect()
    }

    /// Returns whether 32-true gives other results than its golden (the recorded results). Returns
    /// `None` if the results cannot be compared.
    pub(super) fn baseline_moved(
        &self,
        folder: &Path,
        base: &Outcome,
        own: &Outcome,
    ) -> Option<bool> {
        let moved = self.moved(folder, base, own).ok()?;
        Some(moved.iter().any(|moved| moved.precision == Precision::F32True.name()))
    }

    fn moved(&self, folder: &Path, base: &Outcome, own: &Outcome) -> Result<Vec<Moved>, String> {
        let name = golden::file_name(self.model, own.fingerprint.as_ref());
        let path = folder.join(format!("{name}.snap"));
        let Ok(text) = fs::read_to_string(&path) else {
            return Err(format!(
                "NOT COMPARABLE: there is no golden {name} in the folder of --goldens"
            ));
        };
        let golden =
            golden::parse(&text).map_err(|error| format!("NOT COMPARABLE: {name}: {error}"))?;
        let machines = (golden.fingerprint.as_ref(), own.fingerprint.as_ref());
        if let (Some(known), Some(here)) = machines
            && let Some(why) = golden::incomparable(known, here)
        {
            return Err(why);
        }
        let precision = self.precision.name();
        let baseline = Precision::F32True.name();
        if golden.seeds.first() != Some(&self.seed)
            || Length::Epochs(golden.epochs) != self.length
            || self.is_changed
            || golden.batch_size != own.batch_size
            || golden.hyperparameters != own.hyperparameters
            || !golden.runs.contains_key(precision)
        {
            return Err(format!(
                "NOT COMPARABLE: the golden {name} was recorded with another seed, length, batch \
                 size or precision, or with other hyperparameters"
            ));
        }
        let only = |golden: &Golden| {
            let mut golden = golden.clone();
            golden.runs.retain(|name, _| name == precision || name == baseline);
            golden
        };
        let known = only(&golden);
        let mut found = known.clone();
        found.runs.insert(baseline.into(), figures(base, base, Precision::F32True));
        found.runs.insert(precision.into(), figures(own, base, self.precision));
        // Memory is not compared: a golden is recorded after a warm-up run, which has already
        // allocated workspaces, but the gate makes no warm-up run.
        let agreement = Agreement { spread: None, memory: false };
        Ok(agreement.moved(&known, &found))
    }
}

fn figures(own: &Outcome, base: &Outcome, precision: Precision) -> Figures {
    let delta = match (own.metric, base.metric) {
        (Some(own), Some(base)) if precision != Precision::F32True => Some(own - base),
        _ => None,
    };
    Figures {
        accuracy: own.metric,
        accuracy_delta: delta,
        loss: own.loss,
        skipped_steps: own.skipped_steps,
        final_scale: own.final_scale,
        peak_memory_bytes: own.peak_memory_bytes,
        matmul: own.observed.matmul.clone(),
        loss_dtype: own.observed.loss.clone(),
        weights: own.observed.parameters.clone(),
        paired: None,
    }
}
