//! Where a batch is between two reports.

use std::cell::Cell;

use crate::{Error, Result};

/// Where a batch is between two reports of its values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interval {
    is_logged: bool,
    is_captured: bool,
    /// Whether code has asked, and may do more where values are reported.
    asked: Cell<bool>,
}

impl Interval {
    /// Whether the batch's values are reported.
    pub(crate) fn of(is_logged: bool) -> Self {
        Self { is_logged, ..Self::default() }
    }

    /// Of a batch within a CUDA graph.
    pub(crate) fn captured() -> Self {
        Self { is_captured: true, ..Self::default() }
    }

    /// Whether the batch's values are reported, for code that does more then.
    pub(crate) fn ask(&self) -> bool {
        self.asked.set(true);
        self.is_logged
    }

    pub(crate) fn was_asked(&self) -> bool {
        self.asked.get()
    }

    /// Remembers what a batch asked.
    pub(super) fn follow(&mut self, batch: &Self) {
        self.asked.set(self.asked.get() || batch.asked.get());
    }

    /// Refuses to copy to the host within a graph.
    pub(super) fn may_copy(&self, name: &str) -> Result<()> {
        match self.is_captured {
            false => Ok(()),
            true => Err(Error::config(format!(
                "the step logs `{name}`, which is copied to the host: log it where \
                 `step.at_logging_interval()`, and those steps run without a graph"
            ))),
        }
    }
}
