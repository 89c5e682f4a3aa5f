//! Saves a run when a callback requests it, and after an error in a step.

use std::path::PathBuf;

use crate::{Error, Result, callback::Action, event::Event, log::Log, trainer::fit::Run};

impl Run<'_, '_> {
    /// Executes the actions that callbacks requested. Deletes files after all other actions.
    pub(in crate::trainer) fn act(&mut self, actions: Vec<Action>) -> Result<()> {
        let mut deleted = Vec::new();
        for action in actions {
            match action {
                // A trial run (`fast_dev_run`) writes no file.
                Action::Save { .. } if self.loops.fast_dev_run.is_some() => {}
                Action::Save { path, weights_only } => self.save(path, weights_only)?,
                Action::Delete(path) => deleted.push(path),
                Action::Stop(reason) => self.stop(reason)?,
            }
        }
        deleted.into_iter().try_for_each(|path| self.writer.delete(path))?;
        let written = self.writer.written()?;
        self.report_saved(written)
    }

    /// Starts to save the run to `path`. Must only be called while no step is running.
    pub(in crate::trainer) fn save(&mut self, path: PathBuf, weights_only: bool) -> Result<()> {
        let snapshot = self.snapshot(weights_only)?;
        let written = self.writer.write(&path, snapshot)?;
        self.report_saved(written)?;
        (self.observers.emit)(Event::Saving { path })
    }

    fn report_saved(&mut self, written: Vec<PathBuf>) -> Result<()> {
        written.into_iter().try_for_each(|path| (self.observers.emit)(Event::Saved { path }))
    }

    /// Waits until all checkpoints are on the disk.
    pub(in crate::trainer) fn finish_saving(&mut self) -> Result<()> {
        let written = self.writer.finish()?;
        self.report_saved(written)
    }

    /// Saves the run in its state before the failed step, if the user requested this with
    /// [`Trainer::save_on_error`](crate::Trainer::save_on_error).
    pub(in crate::trainer) fn save_after(&mut self, error: &Error) -> Result<()> {
        let Some(path) = self.interruption.save_errors_to.clone() else { return Ok(()) };
        let saved = self.return_to_step().and_then(|()| self.save(path.clone(), false));
        let text = match saved.and_then(|()| self.finish_saving()) {
            Ok(()) => {
                format!("saved {} before the run ended with the error: {error}", path.display())
            }
            Err(why) => format!("the run ended with an error and could not be saved: {why}"),
        };
        (self.observers.emit)(Event::Note { text })
    }

    /// Restores the state that the run had before the failed step.
    fn return_to_step(&mut self) -> Result<()> {
        if self.steps.running() > 0 {
            return Err(Error::config("earlier steps are still running on the device"));
        }
        self.steps.release(&mut self.observers.log)?;
        self.state.return_to_step(self.model)?;
        if let Some(log) = self.log_before.take() {
            self.observers.log = Log::from_state(&log, self.config.device)?;
            self.observers.log.take_reductions(|name| self.model.reduction(name));
        }
        Ok(())
    }
}
