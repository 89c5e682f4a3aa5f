//! Saving a run and going on from what was saved.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};

use super::{MemoryPlan, fit::Run, step::Counts};
use crate::{
    Error, Result,
    checkpoint::{self, Saved},
    event::Position,
    log::Log,
    precision::{Precision, ScalerState},
    random::RandomState,
    state::State,
    weights::{self, Found},
};

/// Under which the choice of what is checkpointed is saved.
const PLAN: &str = "memory";

impl Run<'_, '_> {
    /// Saves the run as it is between two steps.
    pub(super) fn save(&self, path: &Path, weights_only: bool) -> Result<()> {
        let state = match weights_only {
            true => None,
            false => Some(self.state()?),
        };
        let text = BTreeMap::from([
            ("model".to_owned(), self.model.name().to_owned()),
            ("hyperparameters".to_owned(), Value::Object(self.model.hyperparameters()).to_string()),
            ("precision".to_owned(), self.config.precision.to_string()),
            ("epoch".to_owned(), self.position.epoch.to_string()),
            ("global_step".to_owned(), self.runner.global_step().to_string()),
        ]);
        checkpoint::write(path, &weights::distinct(self.model), state, text)
    }

    fn state(&self) -> Result<State> {
        let runner = &self.runner;
        let mut state = State::default();
        state.put("run", &self.identity())?;
        state.put("position", &self.position)?;
        state.put("counts", &runner.counts)?;
        state.put("precision", &runner.policy.precision)?;
        state.put("parts", &runner.parts)?;
        if let Some(plan) = &runner.memory {
            state.put(PLAN, plan)?;
        }
        state.put("lr", &runner.lr)?;
        state.put("validated", &self.validated.map(|(_, position)| position))?;
        // A clock's time is no part of a run that does not end by it.
        if self.config.loops.max_time.is_some() {
            state.put("trained_for", &self.trained_for().as_secs_f64())?;
        }
        state.put("scaler", &runner.optim.scaler.state())?;
        state.put_part("random", RandomState::read(self.config.device)?.state()?);
        state.put_part("log", self.log.state()?);
        for (index, scheduled) in runner.optim.scheduled.iter().enumerate() {
            state.put_part(&format!("optimizer/{index}"), scheduled.state()?);
        }
        for callback in self.callbacks.0.iter() {
            state.put_part(&format!("callback/{}", callback.name()), callback.state()?);
        }
        let mut own = State::default();
        self.model.on_save_checkpoint(&mut own)?;
        state.put_part("model", own);
        Ok(state)
    }

    /// What must be the same for a run to go on with the same numbers.
    fn identity(&self) -> Map<String, Value> {
        let config = self.config;
        let entries = [
            ("model", self.model.name().into()),
            ("hyperparameters", Value::Object(self.model.hyperparameters())),
            ("precision", config.precision.name().into()),
            ("data", self.data.name.as_str().into()),
            ("training examples", self.data.train.len().into()),
            ("batch_size", self.data.batch_size.into()),
            ("drop_last", self.data.loading.drop_last.into()),
            ("accumulate_grad_batches", config.accumulate_grad_batches.into()),
            ("seed", config.seed.into()),
            ("shuffle", config.shuffle.into()),
        ];
        entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Puts the run where the checkpoint at `path` left it. Everything is checked before the
    /// model, its callbacks or a random generator change.
    pub(super) fn resume(&mut self, path: &Path) -> Result<Position> {
        let Saved { weights, state } = checkpoint::read(path)?;
        let at = |error: Error| match error {
            Error::Config(text) => Error::config(format!("{}: {text}", path.display())),
            other => other,
        };
        self.refuse_another(&state, path)?;
        let weights = Found::in_file(self.model, path, &weights)?;
        let device = self.config.device;
        let position: Position = state.get("position").map_err(at)?;
        let counts: Counts = state.get("counts").map_err(at)?;
        let precision: Precision = state.get("precision").map_err(at)?;
        let scaler: ScalerState = state.get("scaler").map_err(at)?;
        let parts = state.get("parts").map_err(at)?;
        let plan = state.values().contains_key(PLAN).then(|| state.get(PLAN));
        let plan: Option<MemoryPlan> = plan.transpose().map_err(at)?;
        let lr = state.get("lr").map_err(at)?;
        let validated: Option<Position> = state.get("validated").unwrap_or(None);
        let trained_for: f64 = state.get("trained_for").unwrap_or(0.0);
        let random = RandomState::from_state(&state.part("random"), device).map_err(at)?;
        let log = Log::from_state(&state.part("log"), device).map_err(at)?;
        let part = |index: usize| state.part(&format!("optimizer/{index}"));
        for (index, scheduled) in self.runner.optim.scheduled.iter().enumerate() {
            scheduled.check_state(&part(index)).map_err(at)?;
        }
        if precision != self.config.precision {
            self.runner.set_precision(self.model, precision)?;
        }
        for (index, scheduled) in self.runner.optim.scheduled.iter_mut().enumerate() {
            scheduled.load_state(&part(index)).map_err(at)?;
        }
        self.runner.optim.scaler.load_state(scaler).map_err(at)?;
        for callback in self.callbacks.0.iter_mut() {
            let part = state.part(&format!("callback/{}", callback.name()));
            // A callback that is new to the run starts afresh.
            if !part.is_empty() {
                callback.load_state(&part).map_err(at)?;
            }
        }
        weights.apply()?;
        self.model.on_load_checkpoint(&state.part("model")).map_err(at)?;
        random.restore(device)?;
        (self.runner.counts, self.runner.lr) = (counts, lr);
        self.runner.set_parts(parts);
        // Of another budget, one is made anew.
        self.runner.memory = plan.filter(|plan| Some(plan.budget) == self.config.memory_budget);
        (self.position, self.log) = (position, log);
        self.validated = validated.map(|position| (Instant::now(), position));
        self.trained_before = Duration::from_secs_f64(trained_for.max(0.0));
        Ok(position)
    }

    fn refuse_another(&self, state: &State, path: &Path) -> Result<()> {
        let saved: Map<String, Value> = state.get("run")?;
        for (name, here) in self.identity() {
            let there = saved.get(&name).unwrap_or(&Value::Null);
            if *there != here {
                return Err(Error::config(format!(
                    "{}: saved by a run whose {name} is {there}, but here it is {here}: make \
                     them equal to go on, or load its weights alone",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}
