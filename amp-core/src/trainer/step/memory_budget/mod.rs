//! Chooses which modules to recompute in the backward pass, so that a step fits into the memory
//! budget.
//!
//! The modules to recompute are chosen before the first step, with the examples of that step.
//! First, the code [measures](Survey) how many bytes each module keeps for the backward pass, and
//! how long its recomputation takes. It then runs a forward and backward pass with the choice for
//! which these numbers predict the smallest peak, and measures the peak memory. From these
//! measurements it predicts which choice fits into the budget at the least cost in time, and
//! measures the peak of this choice, too. The difference between the predicted and the measured
//! peak improves the next prediction.

mod search;
mod select;

use std::{ops::Range, rc::Rc};

use tch::Device;

use self::search::{Tried, search};
use super::{
    last_good::LastGood, micro_batches::Examples, observers::Emit, rollback::StateBackup,
    state::StepState, weight_average::Average,
};
use crate::{
    Error, LightningModule, Result, Step,
    event::MemoryPlan,
    ffi,
    log::Log,
    memory::{self, MemoryMeter, show_bytes, tensor_bytes},
    nn::{Cell, Segment, Survey},
    tch_panics::returned,
    weights,
};

/// The number of bytes reserved for the scalars of a step: losses and logged sums.
const SCALARS: u64 = 4096;

/// Chooses which modules a run with a memory budget recomputes, and reports the choice. Uses the
/// examples of the first step. `loaders` is the number of bytes in data loaders: copies of data
/// sets and, on CUDA, earlier batches that the device may still read. Changes only the memory plan
/// in `state`.
pub(in crate::trainer) fn plan_memory(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    examples: &Examples,
    loaders: u64,
    budget: u64,
    emit: &mut Emit<'_>,
) -> Result<()> {
    let plan = try_plan(state, model, examples, loaders, budget, "")?;
    state.follow_memory_plan(plan, emit)
}

/// Finds a memory plan for a step that trains the parameters that are not frozen at the moment.
/// Does not change the state of the training. `when` names the step in the error, such as ` after
/// the end of …`. The remaining arguments are those of [`plan_memory`].
pub(in crate::trainer) fn try_plan(
    state: &mut StepState<'_>,
    model: &mut dyn LightningModule,
    examples: &Examples,
    loaders: u64,
    budget: u64,
    when: &str,
) -> Result<MemoryPlan> {
    // The trials draw random numbers on the device, which may fail while another thread captures a
    // CUDA graph.
    let _between = ffi::between_captures_on(state.policy.device);
    let backup = StateBackup::begin(model, state.policy.device)?;
    let recording = state.profiler.suspend();
    state.optim.zero_grad()?;
    let made = Trial { state, model, examples, loaders, when }.plan(budget);
    state.optim.zero_grad()?;
    state.profiler.resume(recording)?;
    backup.end(model)?;
    made
}

/// Runs forward and backward passes on the first step's examples as a trial.
struct Trial<'t, 'a> {
    state: &'t mut StepState<'a>,
    model: &'t mut dyn LightningModule,
    examples: &'t Examples,
    /// The number of bytes in data loaders.
    loaders: u64,
    /// The words that name the step in the error. Empty for the first step.
    when: &'t str,
}

impl Trial<'_, '_> {
    fn plan(&mut self, budget: u64) -> Result<MemoryPlan> {
        let cells = select::refine(self.survey()?);
        let found = search(&cells, budget, |chosen| self.peak(&segments(&cells, chosen)))?;
        let Tried { chosen, peak: predicted_peak } = found;
        if predicted_peak > budget {
            return Err(does_not_fit(budget, predicted_peak, &cells, self.when));
        }
        let freed = select::held(&cells, &[]).saturating_sub(select::held(&cells, &chosen));
        Ok(MemoryPlan { budget, segments: segments(&cells, &chosen), freed, predicted_peak })
    }

    /// Measures for each module that can be recomputed how many bytes it keeps for the backward
    /// pass and how long its recomputation takes.
    fn survey(&mut self) -> Result<Vec<Cell>> {
        let Self { state, model, examples, .. } = self;
        let survey = Rc::new(Survey::start(state.policy.device)?);
        let context = state.new_context().with_survey(survey.clone()).again();
        let part = examples.first_part(state.parts)?;
        let _no_grad = tch::no_grad_guard();
        let _autocast = state.policy.autocast()?;
        let mut log = Log::default();
        let mut step = Step::new(&context, &mut log, 0, state.global_step());
        let _ = returned(|| model.training_step(&part, &mut step))?;
        Ok(survey.take())
    }

    /// Measures the peak of tensor bytes in the forward and backward pass of a step that recomputes
    /// the layers in `segments`.
    fn peak(&mut self, segments: &[Segment]) -> Result<u64> {
        let outcome = self.run_passes(segments);
        self.state.optim.scaler.forget();
        self.state.optim.zero_grad()?;
        outcome
    }

    fn run_passes(&mut self, segments: &[Segment]) -> Result<u64> {
        let context = self.state.new_context().with_segments(segments.into()).again();
        self.state.optim.zero_grad()?;
        let casts = self.state.keep_casts()?;
        let held = self.held()?;
        let Self { state, model, examples, .. } = self;
        let meter = MemoryMeter::untracked(state.policy.device)?;
        // A real step keeps its losses, so the measured peak must include them. They can be large:
        // libtorch's mean squared error is a view, which keeps the tensor with the errors of all
        // elements alive.
        let mut losses = Vec::with_capacity(examples.batches.len());
        for (at, (batch, share)) in examples.batches.iter().zip(&examples.shares).enumerate() {
            let mut log = Log::default();
            let index = examples.position(at).batch;
            losses.push(state.passes_in(&context).run(*model, batch, *share, index, &mut log)?);
        }
        let peak = meter.read()?.peak_allocated;
        // These tensors are dropped while `meter` runs. An outer meter has not counted their
        // allocation, so it must not count their release either.
        drop((losses, casts));
        state.optim.scaler.forget();
        state.optim.zero_grad()?;
        Ok(held + peak)
    }

    /// Returns the number of bytes of the tensors that exist between two steps.
    fn held(&self) -> Result<u64> {
        let Self { state, model, examples, loaders, .. } = self;
        if let Device::Cuda(_) = state.policy.device {
            return Ok(SCALARS + loaders + memory::cuda_allocated(state.policy.device)?);
        }
        let weights = weights::distinct(*model);
        let mut held = loaders + SCALARS;
        held += weights.iter().map(|(_, tensor)| tensor_bytes(tensor)).sum::<u64>();
        for scheduled in &state.optim.scheduled {
            let state = scheduled.optimizer.state()?;
            held += state.tensors().map(|(_, tensor)| tensor_bytes(tensor)).sum::<u64>();
        }
        held += state.good.as_ref().map_or(0, LastGood::bytes) + state.rollback.bytes();
        held += state.average.as_ref().map_or(0, Average::bytes);
        held += examples.bytes();
        Ok(held)
    }
}

fn segments(cells: &[Cell], chosen: &[Range<usize>]) -> Vec<Segment> {
    let joined = |range: &Range<usize>| {
        let (first, last) = (&cells[range.start].segment, &cells[range.end - 1].segment);
        let ends = first.layers.as_ref().zip(last.layers.as_ref());
        Segment {
            path: first.path.clone(),
            layers: ends.map(|(first, last)| first.start..last.end),
        }
    };
    chosen.iter().map(joined).collect()
}

fn does_not_fit(budget: u64, least: u64, cells: &[Cell], when: &str) -> Error {
    let (what, fix) = match cells.is_empty() {
        true => (
            "and no module of the model can be checkpointed",
            ", or put layers into a Sequential or a Checkpoint",
        ),
        false => ("even with the checkpointing that saves the most memory", ""),
    };
    Error::config(format!(
        "the memory budget is {budget} bytes, but a step{when} takes {least} bytes ({}) {what}: raise the \
         budget, lower the batch size{fix}",
        show_bytes(least),
    ))
}
