//! Steps in flight: started on the device, their outcome not yet known to the host.

use std::collections::VecDeque;

use super::{
    super::{fit::Run, window::Examples},
    Graph, WARM_UP,
    capture::StepGraph,
    steps_in_flight,
};
use crate::{
    Result,
    callback::Action,
    event::Event,
    ffi::CudaEvent,
    optim::{Interval, OnDevice, Scheduler},
    precision::StepOutcome,
    random::RandomState,
};

/// The steps of a run that are, or may become, graphs.
pub(in super::super) struct Flight {
    state: State,
    /// At most so many at once.
    capacity: usize,
    steps: VecDeque<InFlight>,
    started: u64,
    /// Whether the graph holds the log's sums and the parameters' gradients.
    entered: bool,
    pub(in super::super) replayed: u64,
    /// Steps of this run without a graph.
    pub(in super::super) warmed_up: u64,
}

enum State {
    /// Until the run has warmed up.
    Waiting,
    Captured(Box<StepGraph>),
    /// For the rest of the run.
    Refused,
}

/// A step that was started.
struct InFlight {
    examples: Examples,
    slot: usize,
    known: CudaEvent,
    /// Before the step.
    random: RandomState,
    /// Of each optimizer, before the step; where they move by steps.
    schedules: Vec<Option<Vec<Box<dyn Scheduler>>>>,
    lr: f64,
}

impl Default for Flight {
    fn default() -> Self {
        Self {
            state: State::Refused,
            capacity: 1,
            steps: VecDeque::new(),
            started: 0,
            entered: false,
            replayed: 0,
            warmed_up: 0,
        }
    }
}

impl Flight {
    pub(in super::super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(in super::super) fn len(&self) -> u64 {
        self.steps.len() as u64
    }
}

impl Run<'_, '_> {
    /// Decides whether steps may become graphs. Says why not, if somebody might wonder.
    pub(in super::super) fn prepare_flight(&mut self) -> Result<()> {
        let asked = self.config.graph;
        if asked == Graph::Off || (asked == Graph::Auto && !self.config.device.is_cuda()) {
            return Ok(());
        }
        match steps_in_flight(self.config, self.runner.optim.access) {
            Ok(capacity) => {
                self.flight.capacity = capacity;
                self.flight.state = State::Waiting;
                Ok(())
            }
            Err(error) if asked == Graph::On => Err(error),
            Err(error) => (self.emit)(Event::Note { text: error.to_string() }),
        }
    }

    /// Whether the step on these examples runs as a graph; captures it when the time has come.
    pub(in super::super) fn may_fly(&mut self, examples: &Examples) -> Result<bool> {
        let (runner, flight) = (&self.runner, &self.flight);
        if runner.parts > 1 || runner.profiler.is_running() {
            return Ok(false);
        }
        if runner.looks_for_lost_updates(flight.len()) {
            return Ok(false);
        }
        if matches!(&flight.state, State::Captured(graph) if graph.fits(examples, runner)) {
            return Ok(true);
        }
        let whole = examples.batches.len() as i64 == self.config.accumulate_grad_batches;
        let due = whole
            && match &flight.state {
                State::Waiting => flight.warmed_up >= WARM_UP,
                State::Captured(graph) => !graph.is_of(runner),
                State::Refused => false,
            };
        if !due || !flight.steps.is_empty() {
            return Ok(false);
        }
        // Another graph goes first, with its memory, and leaves what it has summed up.
        self.leave_graph()?;
        let (runner, flight) = (&mut self.runner, &mut self.flight);
        flight.state = State::Refused;
        let Examples { batches, shares, .. } = examples;
        match StepGraph::capture(runner, self.model, batches, shares, flight.capacity) {
            Ok(graph) => {
                flight.state = State::Captured(Box::new(graph));
                flight.entered = false;
                Ok(true)
            }
            Err(error) if self.config.graph == Graph::On => Err(error),
            Err(error) => {
                (self.emit)(Event::Note { text: error.to_string() })?;
                Ok(false)
            }
        }
    }

    /// Starts a step.
    pub(in super::super) fn start_step(&mut self, examples: Examples) -> Result<()> {
        let (runner, flight) = (&mut self.runner, &mut self.flight);
        let State::Captured(graph) = &mut flight.state else {
            unreachable!("only a captured step may fly");
        };
        if !flight.entered {
            // Those that the graph computes none of would be stepped by.
            runner.optim.zero_grad()?;
            graph.enter(&mut self.log)?;
            flight.entered = true;
        }
        let slot = (flight.started % flight.capacity as u64) as usize;
        flight.started += 1;
        let random = RandomState::read(runner.policy().device)?;
        let lr = runner.optim.lr();
        runner.optim.write_rates()?;
        let known = graph.launch(&examples.batches, slot)?;
        let mut schedules = Vec::with_capacity(runner.optim.scheduled.len());
        let kinds = graph.steps.iter().zip(&graph.stepped);
        for (scheduled, (captured, stepped)) in runner.optim.scheduled.iter_mut().zip(kinds) {
            schedules.push(scheduled.fork_schedule());
            if !stepped {
                continue;
            }
            if !captured && scheduled.optimizer.abilities().skips {
                let unless = OnDevice { found_inf: Some(&graph.void), factor: None };
                scheduled.optimizer.step_with(unless)?;
            } else if !captured {
                known.wait()?;
                if !graph.is_void(slot)? {
                    scheduled.optimizer.step()?;
                }
            }
            scheduled.advance(Interval::Step, &[])?;
        }
        flight.steps.push_back(InFlight { examples, slot, known, random, schedules, lr });
        Ok(())
    }

    /// Whether the oldest step in flight has to be dealt with before another is started.
    pub(in super::super) fn must_land(&self) -> bool {
        let Self { runner, flight, config, .. } = self;
        let every = config.log_every_n_steps.cast_unsigned();
        // What a step logs is read before the next overwrites it.
        let logs = (runner.counts.attempts + flight.len()).is_multiple_of(every);
        flight.steps.len() >= flight.capacity || (logs && !flight.is_empty())
    }

    /// Waits for the oldest step in flight. If it was left out, it runs again without a graph, and
    /// the examples of those after it come back first in `queue`.
    pub(in super::super) fn land(&mut self, queue: &mut VecDeque<Examples>) -> Result<Vec<Action>> {
        let (runner, flight) = (&mut self.runner, &mut self.flight);
        let (Some(step), State::Captured(graph)) = (flight.steps.pop_front(), &mut flight.state)
        else {
            return Ok(Vec::new());
        };
        step.known.wait()?;
        if graph.is_void(step.slot)? {
            graph.take_back(step.slot)?;
            runner.optim.scaler.write_device()?;
            for (scheduled, fork) in runner.optim.scheduled.iter_mut().zip(step.schedules) {
                if let Some(fork) = fork {
                    scheduled.restore_schedule(fork);
                }
            }
            step.random.restore(runner.policy().device)?;
            for later in flight.steps.drain(..).rev() {
                queue.push_front(later.examples);
            }
            return self.step_without_graph(step.examples);
        }
        graph.log.count_step();
        flight.replayed += 1;
        let losses = graph.losses(step.slot)?;
        let (Some((last, others)), start) = (losses.split_last(), step.examples.start) else {
            unreachable!("a step has a batch");
        };
        let mut actions = Vec::new();
        for (index, loss) in (start..).zip(others) {
            actions.extend(self.end_batch(index, loss, None)?);
        }
        self.runner.lr = step.lr;
        self.runner.follow_applied(self.model, self.emit)?;
        if self.logs_now() {
            self.leave_graph()?;
        }
        let index = start + others.len() as i64;
        actions.extend(self.end_batch(index, last, Some(&StepOutcome::Applied))?);
        self.position.batch = index + 1;
        Ok(actions)
    }

    /// Brings what the graph summed up back to the log, before somebody else adds to it or reads
    /// it.
    pub(in super::super) fn leave_graph(&mut self) -> Result<()> {
        match &mut self.flight.state {
            State::Captured(graph) if self.flight.entered => {
                self.flight.entered = false;
                graph.log.give_back(&mut self.log)
            }
            _ => Ok(()),
        }
    }
}
