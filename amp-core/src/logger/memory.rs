use std::collections::BTreeMap;

use super::scalar::scalars;
use crate::{
    Result,
    event::{Event, Subscriber},
};

/// Keeps in memory, under tags, the numbers that a run reports.
///
/// | tag | value | step |
/// |---|---|---|
/// | `val_loss` | a value of an epoch, from training or validation | applied optimizer steps |
/// | `train_loss_step` | the value of a step, at the logging interval | applied optimizer steps |
/// | `epoch` | the number of the epoch, counted from 0 | applied optimizer steps |
/// | `lr` | the learning rate of the last step of an epoch | applied optimizer steps |
/// | `grad_scaler/scale` | the loss scale after a change | attempted optimizer steps |
/// | `grad_scaler/skipped` | 1 for a step that was skipped | attempted optimizer steps |
///
/// # Examples
///
/// ```
/// use amp_core::{logger::MemoryLogger, prelude::*};
///
/// fn losses(
///     model: &mut dyn LightningModule,
///     data: &DataModule,
///     config: TrainerConfig,
/// ) -> Result<Vec<(u64, f64)>> {
///     let mut memory = MemoryLogger::default();
///     Trainer::new(config).subscribe(&mut memory).fit(model, data)?;
///     Ok(memory.get("val_loss").to_vec())
/// }
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryLogger {
    history: BTreeMap<String, Vec<(u64, f64)>>,
}

impl MemoryLogger {
    /// Returns the step and the value of each entry with this tag, in the order in which the
    /// entries were logged. Returns an empty slice if no value has this tag.
    pub fn get(&self, tag: &str) -> &[(u64, f64)] {
        self.history.get(tag).map_or(&[], Vec::as_slice)
    }

    /// Returns the last value of this tag.
    pub fn last(&self, tag: &str) -> Option<f64> {
        self.get(tag).last().map(|(_, value)| *value)
    }

    /// Returns the steps and values of all tags.
    pub fn history(&self) -> &BTreeMap<String, Vec<(u64, f64)>> {
        &self.history
    }
}

impl Subscriber for MemoryLogger {
    fn on_event(&mut self, event: &Event) -> Result<()> {
        if event.started().is_some() {
            self.history.clear();
        }
        for scalar in scalars(event) {
            self.history.entry(scalar.tag).or_default().push((scalar.step, scalar.value));
        }
        Ok(())
    }
}
