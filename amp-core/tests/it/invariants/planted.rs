//! A model that contains a fault on purpose, so that the invariants have something to find.

use std::cell::{Cell, RefCell};

use amp_core::{
    Hook, Hyperparameters, LightningModule, Module, Result, Step,
    data::{AnyBatch, Batch, BatchType},
    loss,
    memory::MemoryMeter,
    nn::{Context, Role, Visit, Visitor, named_tensors},
    optim::{Interval, OptimizerConfig, Optimizers, TrainingPlan},
    precision::StepOutcome,
    tch::{Kind, Tensor, no_grad},
};

use super::optimizer::{Build, Odd};
use crate::support::{
    device,
    model::{Model, demo},
    seeded,
};

/// What the model does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    Nothing,
    /// Replaces its tensors by new ones before the first step.
    ReplacesTensors,
    /// Replaces its buffers, and keeps its parameters, in the second step.
    ReplacesBuffers,
    /// Writes new values into its weights before the first step.
    WritesAtStart,
    /// In its second step, declares that its first weight requires no gradient.
    FreezesWithin,
    /// From its second step on, changes the dtype of the buffer that counts batches.
    Converts,
    /// Changes its first weight in the hook that is called after each batch, even if the step was
    /// skipped.
    MovesInHook,
    /// Changes a buffer in the hook after each batch.
    CountsInHook,
    MovesWeightInValidation,
    MovesBufferInValidation,
    /// Runs its layers in training mode during validation.
    TrainsInValidation,
    /// Applies dropout to the input in validation, whatever the mode of the step.
    DropsInValidation,
    /// In its first step, computes no gradient for its last layer.
    SkipsALayer,
    /// Measures the memory of each step while the memory of the epoch is measured.
    MeasuresWithin,
    /// Measures the memory of each step, with one meter after the other.
    MeasuresSteps,
}

/// The model `MixedPrecisionDemo`, with batch norm, dropout and a planted fault.
pub(super) struct Planted {
    inner: Model,
    odd: Odd,
    does: Does,
    steps: Cell<u32>,
    /// The tensors that `visit` reports instead of the model's tensors, in the same order. Empty
    /// unless the fault is `ReplacesTensors` or `ReplacesBuffers`.
    replaced: RefCell<Vec<Tensor>>,
    meter: Option<MemoryMeter>,
}

impl Planted {
    pub(super) fn new(odd: Odd, does: Does) -> Result<Self> {
        let _section = seeded(0);
        // The wrapped model's optimizer is never used, because its `configure_optimizers` is not
        // called.
        let mut inner = Model::regression(demo(0.2)?, |_| {
            OptimizerConfig::new(amp_core::optim::AdamW::default())
        });
        inner.loss = loss::cross_entropy;
        Ok(Self {
            inner,
            odd,
            does,
            steps: Cell::new(0),
            replaced: RefCell::default(),
            meter: None,
        })
    }

    fn first(&self, role: Role) -> Tensor {
        let tensors = named_tensors(&self.inner).into_iter();
        let mut own = tensors.filter(|(_, tensor, own)| *own == role && tensor.is_floating_point());
        own.next().expect("a tensor").1
    }

    /// Replaces the tensors that have one of these roles by copies.
    fn replace(&self, roles: &[Role]) -> Result<()> {
        let others = named_tensors(&self.inner).into_iter().map(|(_, tensor, role)| {
            let trains = tensor.requires_grad();
            Ok(match roles.contains(&role) {
                true => tensor.detach().copy().set_requires_grad(trains),
                false => tensor,
            })
        });
        self.replaced.replace(others.collect::<Result<_>>()?);
        Ok(())
    }

    fn moves(&self, role: Role) -> Result<()> {
        let _ = no_grad(|| self.first(role).f_add_scalar_(0.01))?;
        Ok(())
    }
}

impl Visit for Planted {
    fn visit(&self, visitor: &mut dyn Visitor) {
        self.inner.visit(&mut Replacing { visitor, by: &self.replaced.borrow(), at: 0 });
    }
}

/// A visitor that reports other tensors instead of the model's tensors.
struct Replacing<'a> {
    visitor: &'a mut dyn Visitor,
    by: &'a [Tensor],
    at: usize,
}

impl Visitor for Replacing<'_> {
    fn tensor(&mut self, name: &str, tensor: &Tensor, role: Role) {
        self.visitor.tensor(name, self.by.get(self.at).unwrap_or(tensor), role);
        self.at += 1;
    }

    fn enter(&mut self, name: &str, region: Option<amp_core::precision::Region>) {
        self.visitor.enter(name, region);
    }

    fn leave(&mut self) {
        self.visitor.leave();
    }
}

impl LightningModule for Planted {
    fn name(&self) -> &'static str {
        "Planted"
    }

    fn hyperparameters(&self) -> Hyperparameters {
        Hyperparameters::new()
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        self.steps.set(self.steps.get() + 1);
        match (self.does, self.steps.get()) {
            (Does::FreezesWithin, 2) => drop(self.first(Role::Parameter).set_requires_grad(false)),
            (Does::ReplacesBuffers, 2) => self.replace(&[Role::Buffer])?,
            (Does::Converts, 2) => {
                let tensors = named_tensors(&self.inner).into_iter();
                let counts = tensors.filter(|(_, tensor, _)| tensor.kind() == Kind::Int64);
                for (_, mut count, _) in counts {
                    let other = count.f_to_kind(Kind::Int)?;
                    count.f_set_data(&other)?;
                }
            }
            (Does::SkipsALayer, 1) => {
                let batch = Batch::from_any(batch)?;
                // In this forward pass, the parameters of the last layer require no gradient. The
                // step therefore computes no gradient for them.
                let tensors = named_tensors(&self.inner);
                let head = tensors.iter().filter(|(name, _, _)| name.starts_with("model.12."));
                let held: Vec<Tensor> = head.map(|(_, tensor, _)| tensor.shallow_clone()).collect();
                held.iter().for_each(|tensor| drop(tensor.set_requires_grad(false)));
                let output = self.inner.forward(&batch.input, step.context())?;
                held.iter().for_each(|tensor| drop(tensor.set_requires_grad(true)));
                return loss::cross_entropy(&output, &batch.target);
            }
            (Does::MeasuresWithin, _) => drop(MemoryMeter::start(device())?.read()?),
            (Does::MeasuresSteps, _) => self.meter = Some(MemoryMeter::start(device())?),
            _ => {}
        }
        self.inner.training_step(batch, step)
    }

    fn validation_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        match self.does {
            Does::MovesWeightInValidation => self.moves(Role::Parameter)?,
            Does::MovesBufferInValidation => self.moves(Role::Buffer)?,
            Does::TrainsInValidation => {
                let context = Context::new(step.context().policy(), true).without_dropout();
                let mut log = amp_core::log::Log::default();
                let mut own = Step::new(&context, &mut log, 0, 0);
                return self.inner.validation_step(batch, &mut own);
            }
            Does::DropsInValidation => {
                let batch = Batch::from_any(batch)?;
                let input = batch.input.f_dropout(0.1, true)?;
                return self
                    .inner
                    .validation_step(&Batch::new(input, batch.target)?.to_any()?, step);
            }
            _ => {}
        }
        self.inner.validation_step(batch, step)
    }

    fn configure_optimizers(&self, _: &TrainingPlan) -> Result<Optimizers> {
        let build = Build(self.odd);
        let scheduled = [Odd::IgnoresRates, Odd::SchedulesTwice, Odd::SchedulesNever];
        let config = OptimizerConfig::new(build);
        Ok(match scheduled.contains(&self.odd) || self.does == Does::Nothing {
            true => config.with_scheduler(build, Interval::Step).into(),
            false => config.into(),
        })
    }

    fn on_train_start(&mut self) -> Result<()> {
        match self.does {
            Does::ReplacesTensors => self.replace(&[Role::Parameter, Role::Buffer])?,
            Does::WritesAtStart => self.moves(Role::Parameter)?,
            Does::MeasuresWithin => self.meter = Some(MemoryMeter::start(device())?),
            _ => {}
        }
        Ok(())
    }

    fn on_train_epoch_end(&mut self, _: &mut Hook<'_>) -> Result<()> {
        self.meter.as_ref().map_or(Ok(()), |meter| meter.read().map(drop))
    }

    fn on_train_batch_end(
        &mut self,
        _: &Tensor,
        _: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<()> {
        match self.does {
            Does::MovesInHook => self.moves(Role::Parameter),
            Does::CountsInHook => self.moves(Role::Buffer),
            Does::MeasuresSteps => {
                self.meter.as_ref().map_or(Ok(()), |meter| meter.read().map(drop))
            }
            _ => Ok(()),
        }
    }
}
