//! Runs steps as CUDA graphs, and queues steps whose outcome the host has not read yet.

use std::collections::VecDeque;

use serde_json::{Map, Value};
use tch::Tensor;

use super::{
    super::{
        executor::{Ended, Executor},
        micro_batches::Examples,
        observers::Observers,
        report::end_batch,
        state::StepState,
    },
    WARM_UP, capacity,
    capture::StepGraph,
};
use crate::{
    LightningModule, Result,
    event::Event,
    ffi::CudaEvent,
    log::Log,
    optim::{Interval, OnDevice, Scheduler},
    precision::StepOutcome,
    random::RandomState,
    state::State,
    trainer::config::Graph,
};

/// An executor that captures a step as a CUDA graph and runs the following steps with this graph.
pub(in super::super) struct Replay {
    graph: Captured,
    /// The largest number of steps in flight.
    capacity: usize,
    steps: VecDeque<Queued>,
    started: u64,
    /// Whether the sums of the log and the gradients of the parameters are in the graph's tensors
    /// at the moment.
    entered: bool,
    /// The model's [values in the step](LightningModule::values_in_step), as they were when the
    /// graph was captured or, without a graph, in the latest step.
    values: Map<String, Value>,
    /// Whether a note about a changed value was emitted.
    told: bool,
}

enum Captured {
    /// No graph exists. A graph is captured when this number of steps of the run have run without a
    /// graph.
    After(u64),
    Graph(Box<StepGraph>),
    /// CUDA graphs cannot be used for the rest of the run.
    Refused,
}

/// A step that was started and has not ended.
struct Queued {
    examples: Examples,
    slot: usize,
    /// The values that metrics such as AUROC keep for each example of the step.
    rows: Vec<Tensor>,
    /// The event after which the host can read the outcome of the step.
    known: CudaEvent,
    /// The state of the random generators before the step.
    random: RandomState,
    /// The state of each learning-rate schedule before the step, for schedules that count steps.
    schedules: Vec<Option<Vec<Box<dyn Scheduler>>>>,
    lr: f64,
}

impl Replay {
    /// Creates an executor for the steps of a run.
    ///
    /// # Errors
    /// When steps cannot run as CUDA graphs.
    pub(in super::super) fn new(state: &StepState<'_>) -> Result<Self> {
        Ok(Self {
            graph: Captured::After(WARM_UP),
            capacity: capacity(state.config, state.optim.access)?,
            steps: VecDeque::new(),
            started: 0,
            entered: false,
            values: Map::new(),
            told: false,
        })
    }

    /// Returns whether the model's [values in the step](LightningModule::values_in_step) equal
    /// those in `self.values`. If not, and if no step is in flight, stores the new values and
    /// discards the graph. A new graph is captured when the values have not changed for some steps.
    fn has_same_values(
        &mut self,
        state: &StepState<'_>,
        model: &dyn LightningModule,
        observers: &mut Observers<'_, '_>,
    ) -> Result<bool> {
        let mut own = State::default();
        model.values_in_step(&mut own)?;
        let now = own.values();
        let Some(name) = changed(&self.values, now) else { return Ok(true) };
        if !self.steps.is_empty() {
            return Ok(false);
        }
        if matches!(self.graph, Captured::Graph(_)) && !self.told {
            self.told = true;
            let text = format!(
                "the model's `{name}`, which the training step may read, has changed: steps run \
                 without a CUDA graph until its value stays the same. To run them as CUDA \
                 graphs, keep the value in a `#[buffer]` tensor"
            );
            (observers.emit)(Event::Note { text })?;
        }
        self.values = now.clone();
        self.release(&mut observers.log)?;
        self.forget(state);
        Ok(false)
    }

    /// Discards the CUDA graph. A new graph is captured after a few steps without a graph, as at
    /// the start of the run.
    pub(in super::super) fn forget(&mut self, state: &StepState<'_>) {
        if !matches!(self.graph, Captured::Refused) {
            self.graph = Captured::After(state.eager + WARM_UP);
            self.entered = false;
        }
    }

    /// Returns whether a graph will be captured after some more steps without a graph.
    pub(in super::super) fn will_capture(&self) -> bool {
        matches!(self.graph, Captured::After(_))
    }

    /// Returns whether a step on these examples should be captured as a CUDA graph now.
    fn is_due(&self, state: &StepState<'_>, examples: &Examples) -> bool {
        let whole =
            examples.batches.len() as i64 == state.config.optimization.accumulate_grad_batches;
        let due = match &self.graph {
            Captured::After(steps) => state.eager >= *steps,
            Captured::Graph(graph) => !graph.is_of(state),
            Captured::Refused => false,
        };
        whole && due && self.steps.is_empty()
    }
}

/// Returns the name of the first value in `now` that differs from the value in `then`.
fn changed<'v>(then: &Map<String, Value>, now: &'v Map<String, Value>) -> Option<&'v str> {
    let differs = |(name, value): &(&String, &Value)| then.get(*name) != Some(*value);
    now.iter().find(differs).map(|(name, _)| name.as_str())
}

impl Executor for Replay {
    fn accepts(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: &Examples,
    ) -> Result<bool> {
        if !matches!(self.graph, Captured::Refused)
            && !self.has_same_values(state, model, observers)?
        {
            return Ok(false);
        }
        let looked_at = state.looks_for_lost_updates(self.running());
        // `does_more` is true for a model that does additional work when values are reported, for
        // example logs images. A graph cannot contain this work, because the work runs on the host.
        let does_more = state.does_more && state.logs_after(self.running());
        if examples.skipped
            || does_more
            || state.parts > 1
            || state.profiler.is_running()
            || looked_at
        {
            return Ok(false);
        }
        if matches!(&self.graph, Captured::Graph(graph) if graph.fits(examples, state)) {
            return Ok(true);
        }
        if !self.is_due(state, examples) {
            return Ok(false);
        }
        // The previous graph and its memory are released before the capture. Its sums of logged
        // values must be copied to the log first.
        self.release(&mut observers.log)?;
        self.graph = Captured::Refused;
        let Examples { batches, shares, .. } = examples;
        match StepGraph::capture(state, model, batches, shares, self.capacity) {
            Ok(graph) => {
                self.graph = Captured::Graph(Box::new(graph));
                self.entered = false;
                Ok(true)
            }
            Err(error) if state.config.graph == Graph::On => Err(error),
            Err(error) => {
                (observers.emit)(Event::Note { text: error.to_string() })?;
                Ok(false)
            }
        }
    }

    fn start(
        &mut self,
        state: &mut StepState<'_>,
        _: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: Examples,
    ) -> Result<()> {
        let Captured::Graph(graph) = &mut self.graph else {
            unreachable!("the step was captured before it is replayed");
        };
        if !self.entered {
            // A parameter may have no gradient in the graph. Then the optimizer must not use the
            // gradient that an earlier step has left.
            state.optim.zero_grad()?;
            graph.enter(&mut observers.log)?;
            self.entered = true;
        }
        let slot = (self.started % self.capacity as u64) as usize;
        self.started += 1;
        let random = RandomState::read(state.policy.device)?;
        let lr = state.optim.lr();
        state.optim.write_rates()?;
        let known = graph.launch(&examples.batches, slot)?;
        let rows = graph.log.rows()?;
        let mut schedules = Vec::with_capacity(state.optim.scheduled.len());
        let kinds = graph.steps.iter().zip(&graph.stepped);
        for (scheduled, (captured, stepped)) in state.optim.scheduled.iter_mut().zip(kinds) {
            schedules.push(scheduled.fork_schedule());
            if !stepped {
                continue;
            }
            if !captured && scheduled.optimizer.capabilities().skips {
                let unless = OnDevice { found_inf: Some(&graph.skip_flag), factor: None };
                scheduled.optimizer.step_with(unless)?;
            } else if !captured {
                known.wait()?;
                if !graph.is_void(slot)? {
                    scheduled.optimizer.step()?;
                }
            }
            scheduled.advance(Interval::Step, &[])?;
        }
        self.steps.push_back(Queued { examples, slot, rows, known, random, schedules, lr });
        Ok(())
    }

    fn running(&self) -> u64 {
        self.steps.len() as u64
    }

    fn is_full(&self, state: &StepState<'_>) -> bool {
        let every = state.config.logging.log_every_n_steps.cast_unsigned();
        // The values of a step that is reported must be read before the next step overwrites them.
        let logs = (state.counts.attempts + self.running()).is_multiple_of(every);
        self.steps.len() >= self.capacity || (logs && !self.steps.is_empty())
    }

    fn end(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
    ) -> Result<Option<Ended>> {
        let (Some(mut step), Captured::Graph(graph)) = (self.steps.pop_front(), &mut self.graph)
        else {
            return Ok(None);
        };
        step.known.wait()?;
        if graph.is_void(step.slot)? {
            graph.roll_back(step.slot)?;
            state.optim.scaler.write_device()?;
            for (scheduled, fork) in state.optim.scheduled.iter_mut().zip(step.schedules) {
                if let Some(fork) = fork {
                    scheduled.restore_schedule(fork);
                }
            }
            step.random.restore(state.policy.device)?;
            step.examples.skipped = true;
            let later = self.steps.drain(..).map(|later| later.examples);
            return Ok(Some(Ended::Void(std::iter::once(step.examples).chain(later).collect())));
        }
        graph.log.count_step(std::mem::take(&mut step.rows));
        state.replayed += 1;
        let losses = graph.losses(step.slot)?;
        let Some((last, others)) = losses.split_last() else {
            unreachable!("a step has at least one batch");
        };
        let mut actions = Vec::new();
        for (at, loss) in others.iter().enumerate() {
            let batch = (&step.examples, at);
            actions.extend(end_batch(state, model, observers, batch, loss, None)?);
        }
        state.lr = step.lr;
        state.follow_applied(model, observers.emit)?;
        if state.is_logged() {
            self.release(&mut observers.log)?;
        }
        let (batch, outcome) = ((&step.examples, others.len()), StepOutcome::Applied);
        actions.extend(end_batch(state, model, observers, batch, last, Some(&outcome))?);
        Ok(Some(Ended::Over { next_batch: step.examples.next_batch(), actions }))
    }

    fn release(&mut self, log: &mut Log) -> Result<()> {
        match &mut self.graph {
            Captured::Graph(graph) if self.entered => {
                self.entered = false;
                graph.log.give_back(log)
            }
            _ => Ok(()),
        }
    }
}
