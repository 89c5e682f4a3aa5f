//! Checkpoints chosen so that a step fits into a budget of memory.
//!
//! Before the first step, on its examples: what each module keeps is [measured](Survey) one by
//! one, the leanest choice is tried and its peak measured, and from there the cheapest choice is made
//! that fits by that measure. It is tried too, and what it was off by is learnt from.

mod search;
mod select;

use std::{ops::Range, rc::Rc};

use tch::Device;

use self::search::{Tried, search};
use super::{
    average::Average, callbacks::Emit, rollback::Aside, step::StepRunner, window::Examples,
};
use crate::{
    Error, LightningModule, Result, Step,
    data::AnyBatch,
    event::{Event, MemoryPlan},
    log::Log,
    memory::{self, MemoryMeter, show_bytes, tensor_bytes},
    nn::{Cell, Context, Segment, Survey},
    weights,
};

/// Bytes for the scalars of a step: losses, sums of what is logged.
const SCALARS: u64 = 4096;

impl StepRunner<'_> {
    /// The context of a training pass.
    pub(super) fn new_context(&self) -> Context {
        let context = Context::new(self.policy, true).with_islands(self.config.islands.clone());
        match &self.memory {
            Some(plan) => context.with_segments(plan.segments.clone().into()),
            None => context,
        }
    }

    /// Goes by a plan from here on, and says so.
    pub(super) fn follow_memory_plan(
        &mut self,
        plan: MemoryPlan,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        emit(Event::Checkpointed(plan.clone()))?;
        self.memory = Some(plan);
        self.context = self.new_context();
        Ok(())
    }

    /// Makes the plan of a run that has a budget, on its first step's examples; `loaders` hold so many
    /// bytes. Nothing but the plan is left of it.
    pub(super) fn plan_memory(
        &mut self,
        model: &mut dyn LightningModule,
        examples: &Examples,
        loaders: u64,
        emit: &mut Emit<'_>,
    ) -> Result<()> {
        let (Some(budget), None) = (self.config.memory_budget, &self.memory) else {
            return Ok(());
        };
        let device = self.policy.device;
        let aside = Aside::begin(model, device)?;
        let recording = self.profiler.suspend();
        self.optim.zero_grad()?;
        let made = self.make_plan(model, examples, loaders, budget);
        self.end_capture();
        self.optim.zero_grad()?;
        self.context = self.new_context();
        self.profiler.resume(recording)?;
        aside.end(model)?;
        self.follow_memory_plan(made?, emit)
    }

    fn make_plan(
        &mut self,
        model: &mut dyn LightningModule,
        examples: &Examples,
        loaders: u64,
        budget: u64,
    ) -> Result<MemoryPlan> {
        let cells = select::refine(self.survey(model, &examples.batches[0])?);
        let found = search(&cells, budget, |chosen| {
            self.try_out(model, examples, loaders, &segments(&cells, chosen))
        })?;
        let Tried { chosen, peak: predicted_peak } = found;
        if predicted_peak > budget {
            return Err(does_not_fit(budget, predicted_peak, &cells));
        }
        let freed = select::held(&cells, &[]).saturating_sub(select::held(&cells, &chosen));
        Ok(MemoryPlan { budget, segments: segments(&cells, &chosen), freed, predicted_peak })
    }

    /// What each module that could be checkpointed keeps and costs.
    fn survey(&self, model: &mut dyn LightningModule, batch: &AnyBatch) -> Result<Vec<Cell>> {
        let survey = Rc::new(Survey::start(self.policy.device)?);
        let context = self.new_context().with_survey(survey.clone()).again();
        let part = self.part(batch)?;
        let _no_grad = tch::no_grad_guard();
        let _autocast = self.policy.autocast()?;
        let mut log = Log::default();
        let mut step = Step::new(&context, &mut log, 0, self.global_step());
        let _ = model.training_step(&part, &mut step)?;
        Ok(survey.take())
    }

    /// The most bytes that tensors hold in the passes of a step under this choice.
    fn try_out(
        &mut self,
        model: &mut dyn LightningModule,
        examples: &Examples,
        loaders: u64,
        segments: &[Segment],
    ) -> Result<u64> {
        self.context = self.new_context().with_segments(segments.into()).again();
        self.begin_capture(&examples.batches, &examples.shares)?;
        let held = self.held(model, examples, loaders)?;
        let meter = MemoryMeter::start(self.policy.device)?;
        // A step keeps its losses too. libtorch's mean squared error is a scalar in the memory of all
        // the errors.
        let mut losses = Vec::with_capacity(examples.batches.len());
        for at in 0..examples.batches.len() {
            let mut log = Log::default();
            losses.push(self.forward_backward(model, at, at as i64, &mut log, None)?);
        }
        let peak = meter.read()?.peak_allocated;
        // While the meter lives: another that was started before has not seen them come.
        self.end_capture();
        self.optim.zero_grad()?;
        Ok(held + peak)
    }

    /// Bytes of tensors between two steps: on CUDA all that the process holds on the device, on the CPU
    /// the model's, the optimizers', the kept state's, the batches' and the loaders'.
    fn held(&self, model: &dyn LightningModule, examples: &Examples, loaders: u64) -> Result<u64> {
        if let Device::Cuda(_) = self.policy.device {
            return Ok(SCALARS + memory::cuda_allocated(self.policy.device)?);
        }
        let weights = weights::distinct(model);
        let mut held = loaders + SCALARS;
        held += weights.iter().map(|(_, tensor)| tensor_bytes(tensor)).sum::<u64>();
        for scheduled in &self.optim.scheduled {
            let state = scheduled.optimizer.state()?;
            held += state.tensors().map(|(_, tensor)| tensor_bytes(tensor)).sum::<u64>();
        }
        held += self.good.as_ref().map_or(0, |good| good.bytes()) + self.rollback.bytes();
        held += self.average.as_ref().map_or(0, Average::bytes);
        held += examples.batches.iter().map(AnyBatch::bytes).sum::<u64>();
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

fn does_not_fit(budget: u64, least: u64, cells: &[Cell]) -> Error {
    let (what, fix) = match cells.is_empty() {
        true => (
            "and nothing of the model can be checkpointed",
            ", or let layers be in a Sequential or a Checkpoint",
        ),
        false => ("with all that helps checkpointed", ""),
    };
    Error::config(format!(
        "the memory budget is {budget} bytes, but a step takes {least} bytes ({}) {what}: raise the \
         budget, lower the batch size{fix}",
        show_bytes(least),
    ))
}
