//! A model that does something odd.

use std::cell::{Cell, RefCell};

use amp_core::{
    Hook, Hyperparameters, LightningModule, Module, Result, Step,
    data::{AnyBatch, Batch, BatchType},
    loss,
    memory::MemoryMeter,
    nn::{Context, Role, Visit, Visitor, named_tensors},
    optim::{Interval, OptimizerConfig, Optimizers, TrainingPlan},
    precision::{Precision, StepOutcome},
    tch::{Kind, Tensor, no_grad},
    trainer::{Check, Invariant},
};
use rstest::rstest;

use super::{
    broken, config, fit,
    optimizer::{Build, Odd},
};
use crate::support::{
    device,
    model::{Model, demo},
    seeded,
};

/// What the model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Does {
    Nothing,
    /// Has new tensors in place of its own before the first step.
    ReplacesTensors,
    /// Writes to its weights before the first step.
    WritesAtStart,
    /// Lets its first weight require no gradient, in its second step.
    FreezesWithin,
    /// Has its counts in another dtype, from its second step on.
    Converts,
    /// Moves its first weight in its hook, whatever became of the step.
    MovesInHook,
    /// Moves a buffer there.
    CountsInHook,
    MovesWeightInValidation,
    MovesBufferInValidation,
    /// Validates in training mode.
    TrainsInValidation,
    /// Drops elements in validation, whatever the mode of the step.
    DropsInValidation,
    /// Leaves its last layer out of its first step.
    SkipsALayer,
    /// Measures the memory of each step within that of the epoch.
    MeasuresWithin,
    /// Measures the memory of each step.
    MeasuresSteps,
}

/// The notebook's model with batch norm and dropout.
pub(super) struct Planted {
    inner: Model,
    odd: Odd,
    does: Does,
    steps: Cell<u32>,
    /// By place, tensors in place of the model's.
    replaced: RefCell<Vec<Tensor>>,
    meter: Option<MemoryMeter>,
}

impl Planted {
    pub(super) fn new(odd: Odd, does: Does) -> Result<Self> {
        let _section = seeded(0);
        // Its own optimizer is not asked for.
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

/// Shows other tensors in place of those that there are others for.
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
                // Without the last layer, whose sixteen inputs stand for classes.
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
            Does::ReplacesTensors => {
                let others = named_tensors(&self.inner).into_iter().map(|(_, tensor, _)| {
                    let trains = tensor.requires_grad();
                    Ok(tensor.detach().copy().set_requires_grad(trains))
                });
                let others = others.collect::<Result<Vec<_>>>()?;
                self.replaced.replace(others);
            }
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

/// Each rule is broken, and the error names step, tensor and cause.
#[rstest]
#[case::weight_written_back(
    Odd::WritesBack,
    Does::Nothing,
    Invariant::WeightsMove,
    "step 10: `model.0.weight` has not moved in 10 applied steps"
)]
#[case::parameter_left_out(
    Odd::LeavesOut,
    Does::Nothing,
    Invariant::OptimizerHoldsWeights,
    "before step 1: `model.0.weight` is held by no optimizer"
)]
#[case::copy_held(
    Odd::Copies,
    Does::Nothing,
    Invariant::OptimizerHoldsWeights,
    "before step 1: the optimizer holds another tensor as `model.0.weight` than the model has"
)]
#[case::tensors_replaced(
    Odd::Nothing,
    Does::ReplacesTensors,
    Invariant::OptimizerHoldsWeights,
    "before step 1: the optimizer holds another tensor as `model.0.weight` than the model has"
)]
#[case::frozen_within(
    Odd::Nothing,
    Does::FreezesWithin,
    Invariant::OptimizerHoldsWeights,
    "step 2: `model.0.weight` requires no gradient since this step"
)]
#[case::gradients_kept(
    Odd::KeepsGradients,
    Does::Nothing,
    Invariant::GradientsAreCleared,
    "step 2: `model.0.weight` still has the last step's gradient"
)]
#[case::rates_ignored(
    Odd::IgnoresRates,
    Does::Nothing,
    Invariant::RatesAreScheduled,
    "step 1: group 0 of AdamW steps at the rate 1e-3, but its schedule says 9.9e-4"
)]
#[case::scheduled_twice(
    Odd::SchedulesTwice,
    Does::Nothing,
    Invariant::RatesAreScheduled,
    "step 1: the schedule of AdamW has advanced by 2 in 1 applied steps"
)]
#[case::never_scheduled(
    Odd::SchedulesNever,
    Does::Nothing,
    Invariant::RatesAreScheduled,
    "step 1: the schedule of AdamW has advanced by 0 in 1 applied steps"
)]
#[case::converted(
    Odd::Nothing,
    Does::Converts,
    Invariant::DtypesStay,
    "step 2: `model.1.num_batches_tracked` is int32 [] on"
)]
#[case::weight_moved_in_validation(
    Odd::Nothing,
    Does::MovesWeightInValidation,
    Invariant::EvaluationMovesNothing,
    "validation after step 7: `model.0.weight` has moved"
)]
#[case::buffer_moved_in_validation(
    Odd::Nothing,
    Does::MovesBufferInValidation,
    Invariant::EvaluationMovesNothing,
    "validation after step 7: `model.1.running_mean` has moved"
)]
#[case::validated_in_training_mode(
    Odd::Nothing,
    Does::TrainsInValidation,
    Invariant::EvaluationMode,
    "validation after step 7: `batch_norm_impl_index` runs in training mode"
)]
#[case::dropout_in_validation(
    Odd::Nothing,
    Does::DropsInValidation,
    Invariant::EvaluationMode,
    "validation after step 7: `dropout` runs in training mode"
)]
fn each_rule_is_broken(
    #[values(Check::Cheap, Check::Full)] level: Check,
    #[case] odd: Odd,
    #[case] does: Does,
    #[case] invariant: Invariant,
    #[case] says: &str,
) -> Result<()> {
    let mut model = Planted::new(odd, does)?;
    let _section = seeded(1);
    let text = broken(fit(config(level), &mut model), invariant);
    assert!(text.starts_with(says), "{text}");
    Ok(())
}

/// A meter of the epoch misses what each step's own takes; meters one after the other miss nothing.
#[rstest]
fn memory_that_is_read_in_part_is_broken(
    #[values(Check::Cheap, Check::Full)] level: Check,
) -> Result<()> {
    let _section = seeded(1);
    let mut model = Planted::new(Odd::Nothing, Does::MeasuresWithin)?;
    let text = broken(fit(config(level), &mut model), Invariant::MemoryOverStep);
    assert!(text.contains("readings of a `MemoryMeter` miss what tensors took"), "{text}");
    fit(config(level), &mut Planted::new(Odd::Nothing, Does::MeasuresSteps)?)?;
    Ok(())
}

/// A skipped step: each of 16-mixed's first steps from this scale.
#[rstest]
#[case::a_weight(Odd::Nothing, Does::MovesInHook, "step 1: `model.0.weight` has moved")]
#[case::a_buffer(Odd::Nothing, Does::CountsInHook, "step 1: `model.1.running_mean` has moved")]
#[case::a_rate(Odd::MovesRates, Does::MovesBufferInValidation, "step 1: a learning rate has moved")]
fn a_skip_that_changes_something_is_broken(
    #[values(Check::Cheap, Check::Full)] level: Check,
    #[case] odd: Odd,
    #[case] does: Does,
    #[case] says: &str,
) -> Result<()> {
    let mut config = config(level);
    config.numerics.scaler.init_scale = 2f64.powi(40);
    let mut model = Planted::new(odd, does)?;
    let _section = seeded(1);
    let text = broken(fit(config.clone(), &mut model), Invariant::SkipsChangeNothing);
    assert!(text.starts_with(says), "{text}");
    // It is allowed where a skipped step counts as a step.
    config.recovery.skipped_step_advances = true;
    config.max_epochs = 1;
    if does != Does::MovesBufferInValidation {
        fit(config, &mut Planted::new(odd, does)?)?;
    }
    Ok(())
}

/// f32 masters of 16-bit weights, which would overwrite in silence what was loaded after the optimizer was
/// built.
#[test]
fn weights_written_after_their_masters_were_made_are_told() -> Result<()> {
    let mut config = config(Check::Cheap);
    config.precision = Precision::Bf16True;
    config.numerics.weight_update = amp_core::optim::WeightUpdate::MasterWeights;
    let mut model = Planted::new(Odd::Nothing, Does::WritesAtStart)?;
    let _section = seeded(1);
    let text = broken(fit(config.clone(), &mut model), Invariant::OptimizerHoldsWeights);
    assert!(text.starts_with("before step 1: `model.0.weight` is not its f32 master"), "{text}");
    fit(config, &mut Planted::new(Odd::Nothing, Does::Nothing)?)?;
    Ok(())
}

/// Nothing is looked at where that is asked for, and a run whose model does nothing odd is whole.
#[rstest]
fn a_run_that_is_not_checked_goes_on(
    #[values(Odd::WritesBack, Odd::KeepsGradients, Odd::SchedulesTwice)] odd: Odd,
) -> Result<()> {
    let _section = seeded(1);
    let record = fit(config(Check::Off), &mut Planted::new(odd, Does::Nothing)?)?;
    assert_eq!(record.end.global_step, 14);
    Ok(())
}
