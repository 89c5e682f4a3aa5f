//! Optimizer steps: examples → forward and backward → unscale → clip → apply → report.
//!
//! An [`Executor`](executor::Executor) runs them: [operator by operator](eager), as a CUDA [graph], or as
//! the model's [own step](manual). All share the [state] between steps, the [passes] over a batch and the
//! [optimizers' part](optimization), so that they compute the same numbers. [Recovery](recovery) decides
//! what follows a step that is not finite. The [invariants] of training are checked in each way of
//! running.

mod average;
mod budget;
mod direct;
mod eager;
mod examples;
mod executor;
mod explain;
mod graph;
mod invariants;
mod kept;
mod last_good;
mod length;
mod lost_updates;
mod manual;
mod observers;
mod optimization;
mod passes;
mod profile;
mod recovery;
mod report;
mod rollback;
mod sample;
mod state;

pub(super) use self::{
    budget::plan_memory,
    examples::{Examples, whole_batch_does_not_fit},
    executor::Ended,
    graph::step_access,
    invariants::{Invariants, Moment},
    length::Length,
    observers::{Callbacks, Emit, Observers},
    optimization::{Optimization, full_gradients_note},
    rollback::Aside,
    state::{Counts, StepState},
};

pub use self::invariants::Invariant;

use self::{direct::Direct, executor::Executor, graph::Replay};
use super::config::Graph;
use crate::{LightningModule, Result, log::Log};

/// The executors of a run. All steps in flight belong to one executor.
pub(super) struct Steps {
    graph: Option<Replay>,
    direct: Direct,
    /// Why steps do not run as graphs, if the user may expect graphs.
    pub(super) note: Option<String>,
}

impl Steps {
    /// Decides how steps of `model` run.
    ///
    /// # Errors
    /// When graphs are required but impossible.
    pub(super) fn new(state: &StepState<'_>, model: &dyn LightningModule) -> Result<Self> {
        let run = if model.optimizes_manually() { manual::step } else { eager::step };
        let (graph, note) = match (state.config.graph, state.config.device.is_cuda()) {
            (Graph::Off, _) | (Graph::Auto, false) => (None, None),
            (Graph::On, _) => (Some(Replay::new(state)?), None),
            (Graph::Auto, true) => match Replay::new(state) {
                Ok(graph) => (Some(graph), None),
                Err(error) => (None, Some(error.to_string())),
            },
        };
        Ok(Self { graph, direct: Direct::new(run), note })
    }

    /// Captures again, after as many steps without a graph as at the start.
    pub(super) fn forget_graph(&mut self, state: &StepState<'_>) {
        if let Some(graph) = &mut self.graph {
            graph.forget(state);
        }
    }

    /// Starts a step, or returns its examples if a step in flight has to end first.
    pub(super) fn start(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: Examples,
    ) -> Result<Option<Examples>> {
        if let Some(graph) = &mut self.graph
            && graph.accepts(state, model, observers, &examples)?
        {
            graph.start(state, model, observers, examples)?;
            return Ok(None);
        }
        if self.running() > 0 || !self.direct.accepts(state, model, observers, &examples)? {
            return Ok(Some(examples));
        }
        self.release(&mut observers.log)?;
        self.direct.start(state, model, observers, examples)?;
        Ok(None)
    }

    /// Ends the oldest step in flight; `None` if there is none.
    pub(super) fn end(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
    ) -> Result<Option<Ended>> {
        match (self.direct.end(state, model, observers)?, &mut self.graph) {
            (None, Some(graph)) => graph.end(state, model, observers),
            (ended, _) => Ok(ended),
        }
    }

    /// The number of steps in flight.
    pub(super) fn running(&self) -> u64 {
        self.graph.as_ref().map_or(0, Executor::running)
    }

    /// Whether the oldest step has to end before another is started.
    pub(super) fn is_full(&self, state: &StepState<'_>) -> bool {
        self.direct.is_full(state) || self.graph.as_ref().is_some_and(|graph| graph.is_full(state))
    }

    /// Adds values that steps summed up outside the log to the log, before other code reads or extends
    /// it.
    pub(super) fn release(&mut self, log: &mut Log) -> Result<()> {
        match &mut self.graph {
            Some(graph) => graph.release(log),
            None => Ok(()),
        }
    }
}
