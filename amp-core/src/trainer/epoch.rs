//! The training batches of an epoch, step by step.

use std::collections::VecDeque;

use tch::Tensor;

use super::{
    fit::{Flow, Run},
    window::Examples,
};
use crate::{
    Result,
    callback::Action,
    data::{AnyBatch, DataLoader},
    event::{Event, Phase, Position},
    precision::StepOutcome,
};

impl Run<'_, '_> {
    /// Trains from the present batch to the end of the epoch, or until the run is to end.
    pub(super) fn train(&mut self) -> Result<Flow> {
        let Position { epoch, batch: first } = self.position;
        if first == 0 {
            let mut hook = self.runner.hook(epoch, &mut self.log);
            self.model.on_train_epoch_start(&mut hook)?;
            self.callbacks
                .each(|callback| callback.on_train_epoch_start(&mut hook).map(|()| Vec::new()))?;
        } else {
            // The run was saved before it validated here.
            self.validate_within_epoch()?;
        }
        let loader = self.loader.clone();
        let mut batches = loader.epoch(epoch.cast_unsigned(), first)?;
        // Examples that were read, but not stepped on yet; and where to read on.
        let (mut queue, mut next) = (VecDeque::new(), first);
        let mut actions = Vec::new();
        while self.position.batch < loader.batches() {
            let examples = match queue.pop_front() {
                Some(examples) => Some(examples),
                None => self.read(&loader, &mut batches, &mut next)?,
            };
            match examples {
                Some(examples) if self.may_fly(&examples)? => self.start_step(examples)?,
                Some(examples) if self.flight.is_empty() => {
                    actions.extend(self.step_without_graph(examples)?);
                }
                // It cannot begin before those in flight have ended.
                waiting => {
                    queue.extend(waiting);
                    actions.extend(self.land(&mut queue)?);
                }
            }
            // While the device is at work.
            if queue.is_empty() && !self.flight.is_empty() {
                queue.extend(self.read(&loader, &mut batches, &mut next)?);
            }
            while self.must_land() || (!actions.is_empty() && !self.flight.is_empty()) {
                actions.extend(self.land(&mut queue)?);
            }
            if self.flight.is_empty() {
                if !actions.is_empty() {
                    self.leave_graph()?;
                }
                self.act(std::mem::take(&mut actions))?;
                self.validate_within_epoch()?;
                if self.flow()? == Flow::End {
                    self.leave_graph()?;
                    return Ok(Flow::End);
                }
            }
        }
        self.leave_graph()?;
        Ok(Flow::On)
    }

    /// Reads the examples of a step; none where the epoch has no more, or no more are to be
    /// stepped on before those in flight have ended.
    fn read(
        &mut self,
        loader: &DataLoader,
        batches: &mut dyn Iterator<Item = Result<AnyBatch>>,
        next: &mut i64,
    ) -> Result<Option<Examples>> {
        let in_flight = self.flight.len();
        let most = self.config.max_steps;
        let validates_first = in_flight > 0 && self.validations.follows(self.position.epoch, *next);
        if *next >= loader.batches()
            || validates_first
            || (in_flight > 0 && self.signal().is_some())
            || most.is_some_and(|most| self.runner.global_step() + in_flight >= most)
        {
            return Ok(None);
        }
        let attempt = self.runner.counts.attempts + in_flight;
        let profiled = self.config.profile_every_n_steps.map(i64::cast_unsigned);
        if profiled.is_some_and(|every| attempt.is_multiple_of(every)) {
            if in_flight > 0 {
                return Ok(None);
            }
            self.runner.profiler.start(self.position.epoch, *next)?;
        }
        let start = *next;
        let end = (start + self.config.accumulate_grad_batches).min(loader.batches());
        let mut read = Vec::with_capacity((end - start) as usize);
        for batch in batches.take((end - start) as usize) {
            read.push(batch?);
            self.runner.profiler.lap(Phase::Data)?;
        }
        *next = end;
        Examples::new(self.model, start, read).map(Some)
    }

    /// Steps on some examples, kernel by kernel.
    pub(super) fn step_without_graph(&mut self, examples: Examples) -> Result<Vec<Action>> {
        self.leave_graph()?;
        if self.model.optimizes_manually() {
            return self.step_manually(&examples);
        }
        let held = self.held_by_loaders();
        self.runner.plan_memory(self.model, &examples, held, self.emit)?;
        self.runner.note_left_out(self.model, &examples.batches, self.emit)?;
        self.runner.begin_window(self.model)?;
        let Examples { start, batches, shares } = examples;
        let end = start + batches.len() as i64;
        let mut actions = Vec::new();
        for (index, (batch, share)) in (start..).zip(batches.into_iter().zip(shares)) {
            let Self { model, runner, callbacks, emit, log, position, .. } = self;
            let mut loss = runner.accumulate(*model, batch, index, share, *emit)?;
            let outcome = match index + 1 == end {
                true => Some(runner.step(*model, position.epoch, log, callbacks, *emit)?),
                false => None,
            };
            if let (Some(_), Some(last)) = (&outcome, runner.last_loss()) {
                loss = last;
            }
            actions.extend(self.end_batch(index, &loss, outcome.as_ref())?);
        }
        self.flight.warmed_up += 1;
        self.position.batch = end;
        Ok(actions)
    }

    /// Lets the model do the step's one batch itself.
    fn step_manually(&mut self, examples: &Examples) -> Result<Vec<Action>> {
        let Self { model, runner, emit, log, .. } = self;
        runner.optim.zero_grad()?;
        let (index, batch) = (examples.start, &examples.batches[0]);
        let (loss, outcome) = runner.step_manually(*model, batch, index, log, *emit)?;
        let actions = self.end_batch(index, &loss, Some(&outcome))?;
        self.position.batch = index + 1;
        Ok(actions)
    }

    /// Lets everybody know of a batch, and of the step if it was the step's last.
    pub(super) fn end_batch(
        &mut self,
        index: i64,
        loss: &Tensor,
        outcome: Option<&StepOutcome>,
    ) -> Result<Vec<Action>> {
        let Self { model, runner, callbacks, emit, log, position, .. } = self;
        let epoch = position.epoch;
        let mut hook = runner.hook(epoch, log);
        model.on_train_batch_end(loss, outcome, &mut hook)?;
        let actions = callbacks.each(|callback| callback.on_train_batch_end(outcome, &mut hook))?;
        let global_step = runner.global_step();
        emit(Event::Batch { epoch, batch: index, global_step })?;
        if outcome.is_some() && self.logs_now() {
            (self.emit)(Event::Logged { global_step, values: self.log.step_values()? })?;
        }
        Ok(actions)
    }

    /// Whether the last step is one whose values are told.
    pub(super) fn logs_now(&self) -> bool {
        self.runner.counts.attempts.is_multiple_of(self.config.log_every_n_steps.cast_unsigned())
    }
}
