//! Resumes a saved run, and defines which settings may differ between the saved run and the resumed
//! run.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::differences::{different, differing_options};
use crate::{
    Error, Result,
    checkpoint::{self, Saved},
    data::{Limit, Order},
    event::{Event, MemoryPlan, Position},
    log::Log,
    named::named,
    optim::{Rates, TrainingPlan},
    precision::{Precision, ScalerState},
    random::RandomState,
    state::State,
    trainer::{config::Freeze, fit::Run, step::Counts},
    weights::Found,
};

/// The key under which a checkpoint stores the memory plan: which modules are recomputed in the
/// backward pass.
pub(in crate::trainer) const MEMORY: &str = "memory";

/// The number of steps or epochs in which the rates of saved and current schedule are compared.
const HORIZON: i64 = 10_000;

/// The number of steps or epochs, from the beginning of a schedule, whose learning rates are part
/// of the schedule's digest in a checkpoint.
const DIGEST_INTERVALS: usize = 1000;

/// The settings that checkpoints of older versions may lack. If a checkpoint lacks such a setting,
/// the setting is not compared.
const NEWER: [&str; 7] = [
    "limit_train_batches",
    "overfit_batches",
    "gradient_clip",
    "optimizer's options",
    "weight_update",
    "precision overrides",
    "skipped_step_advances",
];

/// A setting that may differ between the saved run and the resumed run, if the user allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Change {
    /// The learning rates, given in the code or as hyperparameters. The schedule continues where it
    /// was, with the new learning rates.
    Lr,
    /// The number of epochs or steps. A schedule that depends on this number is built for the new
    /// number, and continues at the step or epoch that it had reached.
    Epochs,
    /// The batch size and the number of batches per step. An epoch that was not complete continues
    /// after the same number of examples. If the order of the examples depends on the batch size,
    /// as that of [`Bucketed`](crate::data::Bucketed) does, the epoch starts again.
    BatchSize,
    /// The data, and the selection of training batches. An epoch that was not complete starts again
    /// with the new examples.
    Data,
    /// Gradient clipping, and the options of optimizers except the learning rate and momentum.
    Optimizer,
}

named!(Change, "change", {
    Lr => "lr",
    Epochs => "epochs",
    BatchSize => "batch-size",
    Data => "data",
    Optimizer => "optimizer",
});

impl Run<'_, '_> {
    /// Returns the settings and properties of the run that decide its results. If they equal those
    /// of the saved run, a resumed run gives the same results as an uninterrupted one.
    pub(in crate::trainer) fn identity(&self) -> Map<String, Value> {
        let config = self.config;
        let freeze = config.optimization.freeze.iter().map(Freeze::to_string);
        // If `overfit_batches` is set, `limit_train_batches` has no effect, so its default is
        // stored. `fast_dev_run` is not stored, because a run with this option is not saved.
        let overfit = config.loops.overfit_batches;
        let limit = overfit.map_or(config.loops.limit_train_batches, |_| Limit::default());
        let sampler = match &self.data.order {
            Order::Sampled(sampler) => Some(sampler.name()),
            Order::Shuffled | Order::InOrder => None,
        };
        let entries = [
            ("model", self.model.name().into()),
            ("hyperparameters", Value::Object(self.model.hyperparameters())),
            ("precision", config.precision.name().into()),
            ("data", self.data.name.as_str().into()),
            ("training examples", self.data.train.len().into()),
            ("batch_size", self.data.batch_size.into()),
            ("drop_last", self.data.loading.drop_last.into()),
            ("limit_train_batches", limit_value(limit)),
            ("overfit_batches", overfit.map_or(Value::Null, limit_value)),
            ("accumulate_grad_batches", config.optimization.accumulate_grad_batches.into()),
            ("seed", config.seed.into()),
            ("shuffle", (!matches!(self.data.order, Order::InOrder)).into()),
            ("sampler", sampler.into()),
            ("freeze", freeze.collect::<Vec<_>>().into()),
            ("averaging", serde_json::json!(config.optimization.averaging)),
            ("gradient_clip", serde_json::json!(config.optimization.gradient_clip)),
            ("optimizer's options", self.optimizer_options().into()),
            ("weight_update", config.numerics.weight_update.name().into()),
            ("precision overrides", serde_json::json!(*config.numerics.overrides)),
            ("skipped_step_advances", config.recovery.skipped_step_advances.into()),
        ];
        entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Restores the checkpoint at `path`. Compares the whole checkpoint with this run before
    /// changing the model, a callback or a random generator.
    pub(in crate::trainer) fn resume(&mut self, path: &Path, with: &[Change]) -> Result<Position> {
        let Saved { weights, state } = checkpoint::read(path)?;
        let at = |error: Error| match error {
            Error::Config(text) => Error::config(format!("{}: {text}", path.display())),
            other => other,
        };
        let changed = self.changes(&state, with).map_err(at)?;
        let weights = Found::in_file(self.model, path, &weights)?;
        let device = self.config.device;
        let mut position: Position = state.get("position").map_err(at)?;
        let counts: Counts = state.get("counts").map_err(at)?;
        let precision: Precision = state.get("precision").map_err(at)?;
        let scaler: ScalerState = state.get("scaler").map_err(at)?;
        let parts = state.get("parts").map_err(at)?;
        let plan = state.values().contains_key(MEMORY).then(|| state.get(MEMORY));
        let plan: Option<MemoryPlan> = plan.transpose().map_err(at)?;
        let lr = state.get("lr").map_err(at)?;
        let validated: Option<Position> = state.get("validated").unwrap_or(None);
        let trained_for: f64 = state.get("trained_for").unwrap_or(0.0);
        let random = RandomState::from_state(&state.part("random"), device).map_err(at)?;
        let mut log = Log::from_state(&state.part("log"), device).map_err(at)?;
        log.take_reductions(|name| self.model.reduction(name));
        if changed.contains(&Change::Data) {
            (position.batch, log) = (0, Log::default());
        } else if changed.contains(&Change::BatchSize) {
            let saved: Map<String, Value> = state.get("run").map_err(at)?;
            let size = saved.get("batch_size").and_then(Value::as_i64).unwrap_or(0);
            let window = self.config.optimization.accumulate_grad_batches;
            let batches = position.batch * size / self.data.batch_size;
            match self.loader.has_order_of(position.epoch.cast_unsigned(), size).map_err(at)? {
                true => position.batch = (batches / window * window).min(self.loader.batches()),
                false => (position.batch, log) = (0, Log::default()),
            }
        }
        let stream = (!changed.contains(&Change::Data)).then(|| state.part("stream"));
        self.loader.set_stream(position.epoch.cast_unsigned(), position.batch, stream)?;
        let part = |index: usize| state.part(&format!("optimizer/{index}"));
        self.state.counts = counts;
        match state.get::<Vec<bool>>("frozen") {
            Ok(frozen) if frozen.len() == self.freezing.holding().len() => {
                self.freezing.hold(frozen)
            }
            // Checkpoints of older versions, which could not unfreeze parameters, have no entry
            // `frozen`.
            _ => {}
        }
        self.state.optim.extend()?;
        for (index, scheduled) in self.state.optim.scheduled.iter().enumerate() {
            scheduled.check_state(&part(index)).map_err(at)?;
        }
        if precision != self.config.precision {
            self.state.set_precision(self.model, precision)?;
        }
        for (index, scheduled) in self.state.optim.scheduled.iter_mut().enumerate() {
            scheduled.load_state(&part(index)).map_err(at)?;
            if changed.contains(&Change::Lr) || changed.contains(&Change::Epochs) {
                scheduled.replan(&part(index)).map_err(at)?;
            }
        }
        self.state.optim.scaler.load_state(scaler).map_err(at)?;
        for callback in self.observers.callbacks.0.iter_mut() {
            let part = state.part(&format!("callback/{}", callback.name()));
            // A callback that the saved run did not have has no saved state.
            if !part.is_empty() {
                callback.load_state(&part).map_err(at)?;
            }
        }
        weights.apply()?;
        if let Some(average) = &mut self.state.average {
            average.load_state(&state.part("average")).map_err(at)?;
        }
        self.state.load_good(&state.part("good")).map_err(at)?;
        self.model.on_load_checkpoint(&state.part("model")).map_err(at)?;
        random.restore(device)?;
        self.state.lr = lr;
        self.state.set_parts(parts);
        // A saved memory plan for another budget is dropped. The run then makes a new plan before
        // its first step.
        self.state.memory = plan.filter(|plan| Some(plan.budget) == self.config.memory.budget);
        (self.position, self.observers.log) = (position, log);
        for change in changed {
            let text =
                format!("resumed with a setting that differs from the saved run's: {change}");
            (self.observers.emit)(Event::Note { text })?;
        }
        self.validated = validated.map(|position| (Instant::now(), position));
        self.trained_before = Duration::from_secs_f64(trained_for.max(0.0));
        Ok(position)
    }

    /// Returns the learning rate and momentum of each optimizer's parameter groups, before any
    /// schedule changes them.
    pub(in crate::trainer) fn initial_rates(&self) -> Vec<Vec<Rates>> {
        let scheduled = self.state.optim.scheduled.iter();
        scheduled.map(|scheduled| scheduled.initial_rates().to_vec()).collect()
    }

    fn optimizer_options(&self) -> Vec<String> {
        let scheduled = self.state.optim.scheduled.iter();
        scheduled.map(|scheduled| scheduled.optimizer.fixed_options()).collect()
    }

    /// Returns for each optimizer a digest (hash) of the rates at the beginning of its schedule.
    pub(in crate::trainer) fn rates_digests(&self) -> Result<Vec<Option<u64>>> {
        self.state
            .optim
            .scheduled
            .iter()
            .map(|scheduled| scheduled.rates_digest(DIGEST_INTERVALS))
            .collect()
    }

    /// Returns the kinds of the differences between the saved run and this run. Returns an error
    /// for a difference that `with` does not allow.
    fn changes(&mut self, state: &State, with: &[Change]) -> Result<Vec<Change>> {
        let mut permits = Permits { with, changed: Vec::new() };
        let saved: Map<String, Value> = state.get("run")?;
        let no_freeze = Value::Array(Vec::new());
        for (name, here) in self.identity() {
            // Checkpoints of older versions, which could not freeze parameters, have no entry
            // `freeze`.
            let nothing = if name == "freeze" { &no_freeze } else { &Value::Null };
            if NEWER.contains(&name.as_str()) && !saved.contains_key(&name) {
                continue;
            }
            let there = saved.get(&name).unwrap_or(nothing);
            let by = match name.as_str() {
                "hyperparameters" => Some(Change::Lr),
                "batch_size" | "drop_last" | "accumulate_grad_batches" => Some(Change::BatchSize),
                "data"
                | "training examples"
                | "sampler"
                | "limit_train_batches"
                | "overfit_batches" => Some(Change::Data),
                "gradient_clip" | "optimizer's options" => Some(Change::Optimizer),
                _ => None,
            };
            match (there, &here) {
                _ if *there == here => {}
                (Value::Object(there), Value::Object(here)) if name == "hyperparameters" => {
                    for (name, there, here) in different(there, here) {
                        permits.differ(&format!("hyperparameter `{name}`"), there, here, by)?;
                    }
                }
                _ if name == "optimizer's options" => {
                    let (there, here) = differing_options(there, &here);
                    permits.differ(in_words(&name), &there, &here, by)?;
                }
                _ => permits.differ(in_words(&name), there, &here, by)?,
            }
        }
        if let Ok(there) = state.get::<Vec<Vec<Rates>>>("initial_rates") {
            let here = self.initial_rates();
            if there != here {
                let lr = |rates: &[Vec<Rates>]| -> Value {
                    rates.iter().flatten().map(|rates| Value::from(rates.lr)).collect()
                };
                permits.differ("learning rate", &lr(&there), &lr(&here), Some(Change::Lr))?;
            }
        }
        let plan = state.get::<TrainingPlan>("plan");
        if let (Ok(plan), Ok(there)) = (&plan, state.get::<Vec<Option<u64>>>("courses")) {
            // Builds the schedules with the current code and the length of the saved run, so that
            // their digests can be compared with the saved ones.
            let schedules = self.model.configure_optimizers(plan)?.into_schedules();
            let here = self.state.optim.scheduled.iter().zip(schedules);
            let here = here.map(|(one, schedule)| {
                one.rates_digest_under(schedule.as_deref(), DIGEST_INTERVALS)
            });
            if there != here.collect::<Result<Vec<_>>>()? {
                let cause = format!(
                    "with another schedule: its learning rates or momenta differ from those of this \
                     run's schedule within the first {DIGEST_INTERVALS} steps or epochs"
                );
                permits.needs(Some(Change::Lr), &cause)?;
            }
        }
        if let Ok(there) = plan
            && there != self.plan
        {
            let schedules = self.model.configure_optimizers(&there)?.into_schedules();
            for (scheduled, other) in self.state.optim.scheduled.iter().zip(schedules) {
                if scheduled.is_unlike(other.as_deref(), HORIZON)? {
                    let length = |plan: &TrainingPlan| {
                        let TrainingPlan { max_epochs, estimated_stepping_batches } = plan;
                        Value::from(format!(
                            "{max_epochs} epochs, {estimated_stepping_batches} steps"
                        ))
                    };
                    let (there, here) = (length(&there), length(&self.plan));
                    permits.differ("schedule's length", &there, &here, Some(Change::Epochs))?;
                    break;
                }
            }
        }
        Ok(permits.changed)
    }
}

/// Checks whether the user allows the differences between the saved run and the resumed run.
struct Permits<'c> {
    with: &'c [Change],
    /// The kinds of the differences that were found and that the user allows.
    changed: Vec<Change>,
}

impl Permits<'_> {
    /// Records that the setting `what` is `there` in the saved run but `here` in this run. `by` is
    /// the kind of this change, or `None` if it can never be allowed. Returns an error if the user
    /// has not allowed it.
    fn differ(
        &mut self,
        what: &str,
        there: &Value,
        here: &Value,
        by: Option<Change>,
    ) -> Result<()> {
        let shown = |value: &Value| if value.is_null() { "none".into() } else { value.to_string() };
        let cause = format!("whose {what} is {}, but here it is {}", shown(there), shown(here));
        match by {
            // An integer hyperparameter may be a layer size, which cannot change. Therefore the
            // error does not simply advise the user to allow the change.
            Some(Change::Lr) if here.is_i64() && !self.with.contains(&Change::Lr) => {
                Err(Error::config(format!(
                    "saved by a run {cause}: make the two equal, or, if the number belongs to the \
                     learning-rate schedule, allow the change (resume_with, --resume-with lr)"
                )))
            }
            by => self.needs(by, &cause),
        }
    }

    /// Records a difference if `with` allows it. In the error, `cause` follows `saved by a run`.
    fn needs(&mut self, by: Option<Change>, cause: &str) -> Result<()> {
        let remedy = match by {
            Some(change) if self.with.contains(&change) => {
                if !self.changed.contains(&change) {
                    self.changed.push(change);
                }
                return Ok(());
            }
            Some(change) => {
                format!(
                    "make the two equal, or allow the change (resume_with, --resume-with {change})"
                )
            }
            None => "make the two equal to continue, or load only the file's weights".to_owned(),
        };
        Err(Error::config(format!("saved by a run {cause}: {remedy}")))
    }
}

/// Returns the name of a saved setting for the error text `whose … is …`.
fn in_words(name: &str) -> &str {
    match name {
        "training examples" => "number of training examples",
        "optimizer's options" => "optimizer",
        "precision overrides" => "list of precision overrides",
        name => name,
    }
}

/// Returns a limit as users write it: 10 for 10 batches, or 0.5 for half of the batches.
fn limit_value(limit: Limit) -> Value {
    match limit {
        Limit::Batches(most) => most.into(),
        Limit::Fraction(part) => part.into(),
    }
}
