//! Searches the data for two mistakes: ids (whole numbers) stored as floating-point values, and a
//! tensor that all examples share and whose values are indices of examples.

use tch::Kind;

use super::fit::Run;
use crate::{Result, event::Event};

impl Run<'_, '_> {
    /// Emits a note if casting the first examples to the precision's 16-bit dtype changes whole
    /// numbers. They may be ids, and a changed id selects another embedding.
    pub(super) fn note_whole_numbers(&mut self) -> Result<()> {
        let storage = self.config.precision.storage();
        if !matches!(storage, Kind::Half | Kind::BFloat16) {
            return Ok(());
        }
        let examples = self.data.train.head(self.data.batch_size)?;
        match examples.changed_whole_numbers(storage)? {
            Some(changed) => (self.observers.emit)(Event::Note { text: changed.to_string() }),
            None => Ok(()),
        }
    }

    /// Emits a note if a tensor that all examples share may contain indices of examples, as the
    /// edges of a graph do, and if these indices become wrong because examples are shuffled or
    /// split into batches.
    pub(super) fn note_misleading_numbers(&mut self) -> Result<()> {
        match self.data.misleading_numbers()? {
            Some(text) => (self.observers.emit)(Event::Note { text }),
            None => Ok(()),
        }
    }
}
