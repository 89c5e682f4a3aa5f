//! Validates during a run: before training, within epochs and at the ends of epochs.

use std::time::Instant;

use super::{
    evaluate::{EvaluationStep, Evaluator},
    fit::{Run, timed},
    step::{Moment, StateBackup},
};
use crate::{
    Error, LightningModule, Result,
    callback::Epoch,
    event::{EpochEnd, Event, Position, Validated},
    log::{Log, Logged},
    monitor::is_not_logged,
};

/// The prefix of the names of validation values.
const VALIDATION: &str = "val_";

impl Run<'_, '_> {
    /// Returns whether the run has validation data and does not simply validate once at the end of
    /// each epoch.
    pub(super) fn validates(&self) -> bool {
        !self.val.is_empty() && !self.validations.follow_each_epoch()
    }

    /// Returns whether the last validation used the current weights.
    pub(super) fn is_validated(&self) -> bool {
        self.validated.is_some_and(|(_, place)| place == self.position)
    }

    /// Validates within an epoch, if a validation is due after the step that has just ended.
    pub(super) fn validate_within_epoch(&mut self) -> Result<()> {
        let Position { epoch, batch } = self.position;
        let last = self.validated.map_or(self.started, |(when, _)| when);
        let due =
            self.validations.follows(epoch, batch) || self.validations.is_due_after(last.elapsed());
        // After the epoch's last batch, the code that ends the epoch runs a validation that is due.
        let ends_epoch = batch == self.loader.batches() && self.validations.follows(epoch, batch);
        if !due || self.is_validated() || ends_epoch || self.val.is_empty() {
            return Ok(());
        }
        let (val, val_seconds) = timed(|| self.validate())?;
        are_logged(&self.monitored(), &val)?;
        let position = self.position;
        self.state.optim.follow_validation(&val)?;
        let global_step = self.state.global_step();
        let validated = Validated { position, global_step, val, val_seconds };
        (self.observers.emit)(Event::Validated(validated.clone()))?;
        let (lr, train) = (self.state.lr, Vec::new());
        let Validated { val, .. } = validated;
        let end = EpochEnd { epoch, global_step, lr, train, val, train_seconds: 0.0, val_seconds };
        let precision = self.state.policy().precision;
        let model = &*self.model;
        let (goes_on, ended_early, more_to_come) = (true, false, true);
        let seen = Epoch { model, precision, end: &end, goes_on, ended_early, more_to_come };
        let actions =
            self.observers.callbacks.each(|callback| callback.on_validation_end(&seen))?;
        if !actions.is_empty() {
            self.steps.release(&mut self.observers.log)?;
        }
        self.act(actions)
    }

    /// Validates with the averaged weights, if there are any, and returns the logged values.
    pub(super) fn validate(&mut self) -> Result<Vec<Logged>> {
        self.state.swap_average()?;
        let values = self.evaluate(None);
        self.state.swap_average()?;
        let values = values?;
        self.explain_once(&values)?;
        self.validated = Some((Instant::now(), self.position));
        Ok(values)
    }

    /// Searches the validation sets for the first tensor that is not finite, and names it in a note.
    /// Does so only if a validation loss is not finite, and only once in a run.
    fn explain_once(&mut self, values: &[Logged]) -> Result<()> {
        let is_loss = |logged: &&Logged| logged.name.starts_with("val_loss");
        let Some(loss) = values.iter().filter(is_loss).find(|logged| !logged.value.is_finite())
        else {
            return Ok(());
        };
        if std::mem::replace(&mut self.explained, true) || !self.config.recovery.provenance {
            return Ok(());
        }
        let backup = StateBackup::begin(self.model, self.config.device)?;
        let mut evaluator =
            Evaluator::new(self.config, self.state.policy(), self.state.global_step());
        self.state.swap_average()?;
        let found = evaluator.explain(self.model, &self.val.clone());
        self.state.swap_average()?;
        backup.end(self.model)?;
        if let Some(cause) = found? {
            let (name, value) = (&loss.name, loss.value);
            let text = format!("`{name}` is {value}: in validation, {cause}");
            (self.observers.emit)(Event::Note { text })?;
        }
        Ok(())
    }

    fn evaluate(&mut self, most: Option<i64>) -> Result<Vec<Logged>> {
        let (policy, epoch) = (self.state.policy(), self.position.epoch);
        let mut evaluator = Evaluator::new(self.config, policy, self.state.global_step());
        self.check_invariants(Moment::EvaluationBegins)?;
        let (val, state, emit) = (self.val.clone(), &self.state, &mut self.observers.emit);
        let last = |model: &mut dyn LightningModule, log: &mut Log| {
            model.on_validation_epoch_end(&mut state.hook(epoch, log))
        };
        let global_step = state.global_step();
        // The images, texts and histograms of batches that are validated before training are not
        // reported.
        let mut show = |name, media| match most {
            None => emit(Event::Media { global_step, name, media }),
            Some(_) => Ok(()),
        };
        let values = evaluator.evaluate(
            self.model,
            EvaluationStep::VALIDATION,
            &val,
            most,
            last,
            &mut show,
        )?;
        self.check_invariants(Moment::EvaluationEnds)?;
        Ok(values)
    }

    /// Validates a few batches before training, and reports nothing. Returns an error if a callback
    /// or a schedule reads a validation value that is not logged.
    pub(super) fn check_validation(&mut self) -> Result<()> {
        let batches = self.loops.num_sanity_val_steps;
        let monitored = self.monitored();
        if self.val.is_empty() {
            return are_logged(&monitored, &[]);
        }
        if batches == 0 && monitored.is_empty() {
            return Ok(());
        }
        let backup = StateBackup::begin(self.model, self.config.device)?;
        let values = self.evaluate(Some(batches.max(1)));
        backup.end(self.model)?;
        match values {
            Ok(values) => are_logged(&monitored, &values),
            // `batches` is 0, so only one batch was validated, to check the monitored names. A
            // metric that needs more than one batch may fail. The first validation of all batches
            // will then show whether the monitored values are logged.
            Err(error) if batches == 0 && !matches!(error, Error::Invariant { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns the names of the validation values that callbacks and schedules read.
    fn monitored(&self) -> Vec<String> {
        let callbacks = self.observers.callbacks.0.iter().filter_map(|one| one.monitors());
        let schedules = self.state.optim.scheduled.iter().filter_map(|one| one.monitor());
        let all = callbacks.chain(schedules);
        all.filter(|name| name.starts_with(VALIDATION)).map(str::to_owned).collect()
    }
}

fn are_logged(monitored: &[String], values: &[Logged]) -> Result<()> {
    let names = values.iter().map(|logged| logged.name.as_str());
    match monitored.iter().find(|name| values.iter().all(|logged| logged.name != **name)) {
        Some(name) => Err(is_not_logged(name, names)),
        None => Ok(()),
    }
}
