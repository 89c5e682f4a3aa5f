//! Searches the data for ids (whole numbers) that are stored as floating-point values, and for a
//! tensor that all examples share and that may contain indices of examples.

use tch::Kind;

use super::fit::Run;
use crate::{Result, event::Event};

impl Run<'_, '_> {
    /// Emits a note if the conversion to the precision's 16-bit dtype changes whole numbers in the
    /// first examples. Such numbers may be ids, and a changed id selects another embedding.
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

    /// Emits a note if a tensor that all examples share may contain indices of examples (edges of a
    /// graph, for instance), and if the indices refer to other examples after shuffling or
    /// batching.
    pub(super) fn note_misleading_numbers(&mut self) -> Result<()> {
        match self.data.misleading_numbers()? {
            Some(text) => (self.observers.emit)(Event::Note { text }),
            None => Ok(()),
        }
    }
}
