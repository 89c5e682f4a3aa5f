//! Decides whether steps run operator by operator or as CUDA graphs.

use super::{
    direct::Direct,
    eager,
    executor::{Ended, Executor},
    graph::Replay,
    manual,
    micro_batches::Examples,
    observers::Observers,
    state::StepState,
};
use crate::{LightningModule, Result, ffi, log::Log, trainer::config::Graph};

/// The two executors of a run, with and without CUDA graphs. At any time, all steps in flight
/// (started, with an outcome that the host does not know yet) belong to only one of them.
pub(in crate::trainer) struct Steps {
    graph: Option<Replay>,
    direct: Direct,
    /// The reason why steps do not run as CUDA graphs, although the options allow it and the device
    /// is a CUDA device.
    pub(in crate::trainer) note: Option<String>,
}

impl Steps {
    /// Decides how the steps of `model` run.
    ///
    /// # Errors
    /// When the options require CUDA graphs, but steps cannot run as CUDA graphs.
    pub(in crate::trainer) fn new(
        state: &StepState<'_>,
        model: &dyn LightningModule,
    ) -> Result<Self> {
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

    /// Discards the CUDA graph. A new graph is captured after a few more steps, which run without a
    /// graph.
    pub(in crate::trainer) fn forget_graph(&mut self, state: &StepState<'_>) {
        if let Some(graph) = &mut self.graph {
            graph.forget(state);
        }
    }

    /// Starts a step on `examples`. If a step in flight must end first, returns the examples and
    /// starts no step.
    pub(in crate::trainer) fn start(
        &mut self,
        state: &mut StepState<'_>,
        model: &mut dyn LightningModule,
        observers: &mut Observers<'_, '_>,
        examples: Examples,
    ) -> Result<Option<Examples>> {
        if let Some(graph) = &mut self.graph
            && graph.accepts(state, model, observers, &examples)?
        {
            let _between = ffi::between_captures_on(state.config.device);
            graph.start(state, model, observers, examples)?;
            return Ok(None);
        }
        if self.running() > 0 || !self.direct.accepts(state, model, observers, &examples)? {
            return Ok(Some(examples));
        }
        self.release(&mut observers.log)?;
        let _between = ffi::between_captures_on(state.config.device);
        state.seeding.is_watched = self.graph.as_ref().is_some_and(Replay::will_capture);
        let started = self.direct.start(state, model, observers, examples);
        state.seeding.is_watched = false;
        started?;
        Ok(None)
    }

    /// Ends the oldest step in flight. Returns `None` if no step is in flight.
    pub(in crate::trainer) fn end(
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

    /// Returns the number of steps in flight.
    pub(in crate::trainer) fn running(&self) -> u64 {
        self.graph.as_ref().map_or(0, Executor::running)
    }

    /// Returns whether the oldest step must end before a further step can start.
    pub(in crate::trainer) fn is_full(&self, state: &StepState<'_>) -> bool {
        self.direct.is_full(state) || self.graph.as_ref().is_some_and(|graph| graph.is_full(state))
    }

    /// Copies the sums of logged values from the CUDA graph's tensors to the log, so that other
    /// code can use the log.
    pub(in crate::trainer) fn release(&mut self, log: &mut Log) -> Result<()> {
        match &mut self.graph {
            Some(graph) => graph.release(log),
            None => Ok(()),
        }
    }
}
