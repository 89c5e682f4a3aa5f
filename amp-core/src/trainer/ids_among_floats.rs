//! Searches the first examples for ids that are stored as floating-point values.

use tch::Kind;

use super::fit::Run;
use crate::{Result, event::Event};

impl Run<'_, '_> {
    /// Writes a note if a 16-bit dtype changes whole numbers among the values of the first
    /// examples, because they may be ids.
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
}
