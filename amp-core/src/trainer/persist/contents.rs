//! Collects the content of a run's checkpoint.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{resume::MEMORY, write::Snapshot};
use crate::{
    Result, checkpoint::OVERRIDES, event::Position, random::RandomState, state::State,
    trainer::fit::Run, weights,
};

impl Run<'_, '_> {
    /// Returns a copy of the run's weights for a checkpoint and, unless `weights_only` is true, of
    /// the run's state. Must only be called while no step is running.
    pub(in crate::trainer) fn snapshot(&self, weights_only: bool) -> Result<Snapshot> {
        let state = match weights_only {
            true => None,
            false => Some(self.state()?),
        };
        let overrides = serde_json::json!(*self.config.numerics.overrides).to_string();
        let text = BTreeMap::from([
            ("model".to_owned(), self.model.name().to_owned()),
            ("hyperparameters".to_owned(), Value::Object(self.model.hyperparameters()).to_string()),
            ("precision".to_owned(), self.config.precision.to_string()),
            ("data".to_owned(), self.data.name.clone()),
            ("batch_size".to_owned(), self.data.batch_size.to_string()),
            (OVERRIDES.to_owned(), overrides),
            ("epoch".to_owned(), self.position.epoch.to_string()),
            ("global_step".to_owned(), self.state.global_step().to_string()),
        ]);
        // The file stores the averaged weights as the model's weights, and the unaveraged weights
        // in the run's state.
        self.state.swap_average()?;
        let snapshot = self.averaged_snapshot(state, text);
        self.state.swap_average()?;
        snapshot
    }

    /// Returns a copy of the weights and of `state`, with the state of the averages added to
    /// `state`. If the run averages weights, the model must contain the averaged weights.
    fn averaged_snapshot(
        &self,
        mut state: Option<State>,
        text: BTreeMap<String, String>,
    ) -> Result<Snapshot> {
        if let (Some(state), Some(average)) = (&mut state, &self.state.average) {
            state.put_part("average", average.state()?);
        }
        Snapshot::take(weights::distinct(self.model), state, text, self.config.device)
    }

    /// Returns the state of the run without the state of the averages.
    fn state(&self) -> Result<State> {
        let steps = &self.state;
        let mut state = State::default();
        state.put("run", &self.identity())?;
        state.put("plan", &self.plan)?;
        state.put("initial_rates", &self.initial_rates())?;
        state.put("courses", &self.rates_digests()?)?;
        state.put("position", &self.position)?;
        let Position { epoch, batch } = self.position;
        if let Some(stream) = self.loader.stream_state(epoch.cast_unsigned(), batch)? {
            state.put_part("stream", stream);
        }
        state.put("frozen", &self.freezing.holding())?;
        state.put("counts", &steps.counts)?;
        state.put("precision", &steps.policy().precision)?;
        state.put("parts", &steps.parts)?;
        if let Some(plan) = &steps.memory {
            state.put(MEMORY, plan)?;
        }
        if let Some(good) = steps.good_state()? {
            state.put_part("good", good);
        }
        state.put("lr", &steps.lr)?;
        state.put("validated", &self.validated.map(|(_, position)| position))?;
        // The training time is saved only if the run has a time limit.
        if self.config.loops.max_time.is_some() {
            state.put("trained_for", &self.trained_for().as_secs_f64())?;
        }
        state.put("scaler", &steps.optim.scaler.state())?;
        state.put_part("random", RandomState::read(self.config.device)?.state()?);
        state.put_part("log", self.observers.log.state()?);
        for (index, scheduled) in steps.optim.scheduled.iter().enumerate() {
            state.put_part(&format!("optimizer/{index}"), scheduled.state()?);
        }
        for callback in self.observers.callbacks.0.iter() {
            state.put_part(&format!("callback/{}", callback.name()), callback.state()?);
        }
        let mut own = State::default();
        self.model.on_save_checkpoint(&mut own)?;
        state.put_part("model", own);
        Ok(state)
    }
}
