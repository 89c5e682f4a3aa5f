//! The position of a batch in the logging interval. It decides whether the batch's values are
//! reported.

use std::cell::Cell;

use crate::{Error, Result};

/// Whether the values of a batch are reported, and whether the batch runs within a CUDA graph.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interval {
    is_logged: bool,
    is_captured: bool,
    /// Whether the model has called `step.at_logging_interval()`. Such a model may do additional
    /// work in the batches whose values are reported, so the steps of these batches may differ from
    /// other steps.
    asked: Cell<bool>,
    /// The name of a number that code of the model has read and that differs in every step, such as
    /// the step count. `None` if no such number was read.
    read: Cell<Option<&'static str>>,
}

impl Interval {
    /// Creates the position of a batch. `is_logged` says whether the batch's values are reported.
    pub(crate) fn of(is_logged: bool) -> Self {
        Self { is_logged, ..Self::default() }
    }

    /// Creates the position of a batch that runs within a CUDA graph.
    pub(crate) fn captured() -> Self {
        Self { is_captured: true, ..Self::default() }
    }

    /// Returns whether the batch's values are reported, and remembers that the model has asked.
    pub(crate) fn ask(&self) -> bool {
        self.asked.set(true);
        self.is_logged
    }

    pub(crate) fn was_asked(&self) -> bool {
        self.asked.get()
    }

    /// Remembers that the model has read the number called `name`, which differs in every step.
    pub(crate) fn reads(&self, name: &'static str) {
        self.read.set(Some(name));
    }

    /// Returns an error if code within a CUDA graph has read a number that differs in every step,
    /// because each replay of the graph would use the number that was read during the capture.
    pub(crate) fn may_repeat(&self) -> Result<()> {
        match self.read.get().filter(|_| self.is_captured) {
            None => Ok(()),
            Some(name) => Err(Error::config(format!(
                "the training step reads `step.{name}()`, which differs in every step: to run \
                 the step as a CUDA graph, count in a `#[buffer]` tensor"
            ))),
        }
    }

    /// Copies to a step the information that the model has asked, in one of the step's batches,
    /// whether values are reported.
    pub(super) fn follow(&mut self, batch: &Self) {
        self.asked.set(self.asked.get() || batch.asked.get());
    }

    /// Returns an error if the batch runs within a CUDA graph, from which the value `name` cannot
    /// be copied to the host.
    pub(super) fn may_copy(&self, name: &str) -> Result<()> {
        match self.is_captured {
            false => Ok(()),
            true => Err(Error::config(format!(
                "the step logs `{name}`, which is copied to the host: log it only if \
                 `step.at_logging_interval()` is true, so that only the steps that log it run \
                 without a CUDA graph"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Log, Media};

    #[test]
    fn a_captured_step_reads_no_number_that_changes() -> Result<()> {
        let (captured, eager) = (Interval::captured(), Interval::of(true));
        captured.may_repeat()?;
        [&captured, &eager].into_iter().for_each(|interval| interval.reads("global_step"));
        eager.may_repeat()?;
        let error = captured.may_repeat().expect_err("a refusal").to_string();
        assert!(error.contains("reads `step.global_step()`"), "{error}");
        Ok(())
    }

    #[test]
    fn a_captured_step_logs_nothing_for_the_host() -> Result<()> {
        let text = || Ok(Some(Media::Text("words".to_owned())));
        let mut log = Log::at(Interval::captured());
        assert!(!log.interval().ask() && log.interval().was_asked());
        let error = log.media("note", text).expect_err("a refusal").to_string();
        assert!(
            error.contains("the step logs `note`") && error.contains("at_logging_interval"),
            "{error}"
        );
        let mut log = Log::at(Interval::of(true));
        assert!(!log.interval().was_asked() && log.interval().ask());
        log.media("note", text)?;
        let mut whole = Log::default();
        whole.merge(log)?;
        assert!(whole.interval().was_asked());
        assert_eq!(whole.take_media().len(), 1);
        assert_eq!(whole.take_media(), []);
        Ok(())
    }
}
