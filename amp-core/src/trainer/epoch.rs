//! Trains over the batches of an epoch, step by step.

use std::collections::VecDeque;

use super::{
    fit::{Flow, Run},
    step::{Ended, Examples, Moment, plan_memory, try_plan},
};
use crate::{
    Result,
    callback::Action,
    data::{AnyBatch, DataLoader},
    event::{Phase, Position},
};

impl Run<'_, '_> {
    /// Returns the epoch of the run's last step, and the number of steps before that step, assuming
    /// that no step is skipped.
    pub(super) fn last_position(&self) -> (i64, u64) {
        let batches = self.loader.batches();
        self.config.last_position(batches, self.config.length(batches, self.max_epochs))
    }

    /// Trains from the current batch to the end of the epoch, or until the run ends.
    pub(super) fn train(&mut self) -> Result<Flow> {
        let Position { epoch, batch: first } = self.position;
        if first == 0 {
            let mut hook = self.state.hook(epoch, &mut self.observers.log);
            self.model.on_train_epoch_start(&mut hook)?;
            self.observers
                .callbacks
                .each(|callback| callback.on_train_epoch_start(&mut hook).map(|()| Vec::new()))?;
        } else {
            // A checkpoint after a step is saved before the validation that follows the step. A run
            // that resumes from this checkpoint must run this validation first.
            self.validate_within_epoch()?;
        }
        let loader = self.loader.clone();
        let mut batches = loader.epoch(epoch.cast_unsigned(), first)?;
        // `queue` holds examples that were read and are not used yet. `next` is the index of the
        // batch to read next.
        let (mut queue, mut next) = (VecDeque::new(), first);
        let mut actions = Vec::new();
        while self.position.batch < loader.batches() {
            if self.steps.running() == 0 {
                self.unfreeze()?;
            }
            let examples = match queue.pop_front() {
                Some(examples) => Some(examples),
                None => self.read(&loader, &mut batches, &mut next)?,
            };
            let started = match examples {
                Some(examples) => self.start_step(examples, &mut queue)?,
                None => false,
            };
            if !started {
                actions.extend(self.end_step(&mut queue)?);
            }
            // The examples of the next step are read while the device computes this step.
            if queue.is_empty() && self.steps.running() > 0 {
                queue.extend(self.read(&loader, &mut batches, &mut next)?);
            }
            while self.steps.is_full(&self.state)
                || (!actions.is_empty() && self.steps.running() > 0)
            {
                actions.extend(self.end_step(&mut queue)?);
            }
            if self.steps.running() == 0 {
                if !actions.is_empty() {
                    self.steps.release(&mut self.observers.log)?;
                }
                self.act(std::mem::take(&mut actions))?;
                self.validate_within_epoch()?;
                if self.flow()? == Flow::End {
                    self.steps.release(&mut self.observers.log)?;
                    return Ok(Flow::End);
                }
            }
        }
        self.steps.release(&mut self.observers.log)?;
        Ok(Flow::On)
    }

    /// Starts the step on these examples, and returns whether it was started. If a running step
    /// must end before this step can start, puts the examples back at the front of `queue`.
    fn start_step(&mut self, examples: Examples, queue: &mut VecDeque<Examples>) -> Result<bool> {
        if self.interruption.save_errors_to.is_some() && self.steps.running() == 0 {
            self.log_before = Some(self.observers.log.state()?.copied()?);
        }
        let last = self.last_position();
        let Self { model, state, steps, observers, freezing, .. } = self;
        if let Some(budget) = state.unplanned_budget() {
            let loaders = match state.policy().device.is_cuda() {
                false => self.loader.held_bytes() + self.val.held_bytes(),
                true if self.loader.is_resident() => 0,
                // The batches that are loaded for a step occupy device memory until the device has
                // used them, perhaps until the end of the next step. Therefore the batches of a
                // second step are counted, too.
                true => examples.bytes(),
            };
            // When a freeze ends, later steps train more parameters and need more memory. Check in
            // advance that these steps will fit into the budget.
            let holding = freezing.holding().to_vec();
            let later = freezing.update(last.0, last.1);
            let when = format!(" after the end of {}", later.join(", "));
            if later.is_empty() {
                freezing.hold(holding);
            } else {
                state.extend(*model)?;
                let fits = try_plan(state, *model, &examples, loaders, budget, &when);
                freezing.hold(holding);
                state.undo_extend(*model)?;
                fits?;
            }
            plan_memory(state, *model, &examples, loaders, budget, observers.emit)?;
        }
        observers.invariants.at(Moment::StepBegins, state, *model, steps.running())?;
        let waiting = steps.start(state, *model, observers, examples)?;
        let started = waiting.is_none();
        if let Some(examples) = waiting {
            queue.push_front(examples);
        }
        Ok(started)
    }

    /// Ends the oldest step in flight (a step that was started and whose outcome is not known yet).
    /// If a CUDA graph skipped steps because a value was not finite, puts their examples back at
    /// the front of `queue`.
    fn end_step(&mut self, queue: &mut VecDeque<Examples>) -> Result<Vec<Action>> {
        let Self { model, state, steps, observers, .. } = self;
        match steps.end(state, *model, observers)? {
            None => Ok(Vec::new()),
            Some(Ended::Over { next_batch, actions }) => {
                self.position.batch = next_batch;
                state.end();
                self.log_before = None;
                observers.invariants.at(Moment::StepEnds, state, *model, steps.running())?;
                Ok(actions)
            }
            Some(Ended::Void(examples)) => {
                for examples in examples.into_iter().rev() {
                    queue.push_front(examples);
                }
                Ok(Vec::new())
            }
        }
    }

    /// Reads the examples of one step. Returns `None` at the end of the epoch, or if the steps in
    /// flight must end before the next step may start.
    fn read(
        &mut self,
        loader: &DataLoader,
        batches: &mut dyn Iterator<Item = Result<AnyBatch>>,
        next: &mut i64,
    ) -> Result<Option<Examples>> {
        let in_flight = self.steps.running();
        let most = self.config.max_steps;
        let global_step = self.state.global_step();
        let unfreezes = self.freezing.next_step(global_step);
        let unfreezes_first =
            in_flight > 0 && unfreezes.is_some_and(|step| global_step + in_flight >= step);
        let validates_first = in_flight > 0 && self.validations.follows(self.position.epoch, *next);
        if *next >= loader.batches()
            || validates_first
            || unfreezes_first
            || (in_flight > 0 && self.signal().is_some())
            || most.is_some_and(|most| global_step + in_flight >= most)
        {
            return Ok(None);
        }
        let attempt = self.state.counts.attempts + in_flight;
        let profiled = self.config.logging.profile_every_n_steps.map(i64::cast_unsigned);
        if profiled.is_some_and(|every| attempt.is_multiple_of(every)) {
            if in_flight > 0 {
                return Ok(None);
            }
            self.state.profiler.start(self.position.epoch, *next)?;
        }
        let start = *next;
        let window = self.config.optimization.accumulate_grad_batches;
        let end = start.saturating_add(window).min(loader.batches());
        let mut read = Vec::with_capacity((end - start) as usize);
        for batch in batches.take((end - start) as usize) {
            read.push(batch?);
            self.state.profiler.lap(Phase::Data)?;
        }
        *next = end;
        let start = Position { batch: start, ..self.position };
        Examples::new(self.model, start, read).map(Some)
    }
}
