//! Faults (mistakes on purpose) in the forward pass, in training and in validation.

use amp_core::{
    LightningModule, Result, Step,
    data::{AnyBatch, Batch, BatchType},
    hardware::seed_everything,
    log::Log,
    memory::MemoryMeter,
    nn::{Context, named_tensors, parameters},
    precision::AutocastGuard,
    tch::{Kind, Tensor, no_grad},
};

use super::Fault;

/// State that some faults keep from one training step to the next.
#[derive(Default)]
pub(super) struct Steps {
    /// The number of batches that the run has trained on so far.
    batches: u64,
    /// The number of examples in the first batch.
    examples: i64,
    /// `batches` in a tensor on the device, where a replayed CUDA graph increases it as well.
    seen: Option<Tensor>,
    /// A memory meter that stays active over all steps, so that it disturbs another memory meter.
    meter: Option<MemoryMeter>,
}

/// The number of steps that the trainer runs in eager mode before it captures a step as a CUDA
/// graph.
const BEFORE_CAPTURE: u64 = 3;

pub(super) fn training_step(
    fault: Fault,
    steps: &mut Steps,
    watched: bool,
    model: &mut dyn LightningModule,
    batch: &AnyBatch,
    step: &mut Step<'_>,
) -> Result<Tensor> {
    steps.batches += 1;
    if steps.batches == 1 {
        steps.examples = batch.len();
    }
    let times = |factor: f64, loss: Tensor| -> Result<Tensor> { Ok(loss.f_mul_scalar(factor)?) };
    match fault {
        Fault::AutocastOff => {
            let _off = AutocastGuard::off(step.context().policy().device)?;
            model.training_step(batch, step)
        }
        Fault::LayerNormInF16 => model.training_step(&normed_in_f16(batch)?, step),
        Fault::LossDividedTwice => times(0.25, model.training_step(batch, step)?),
        Fault::LossSummed => times(4.0, model.training_step(batch, step)?),
        Fault::PartialStepCountsLess => {
            let last = batch.len() < steps.examples;
            times(if last { 0.25 } else { 1.0 }, model.training_step(batch, step)?)
        }
        Fault::LaterStepsWrong => {
            // Counts the batches on the device, because a CUDA graph runs no code of the host.
            let loss = model.training_step(batch, step)?;
            let mut seen = match steps.seen.take() {
                Some(seen) => seen,
                None => Tensor::f_zeros([0_i64; 0], (Kind::Float, loss.device()))?,
            };
            let _ = seen.f_add_scalar_(1.0)?;
            let early = seen.f_le(40.0)?.f_to_kind(loss.kind())?;
            steps.seen = Some(seen);
            Ok(loss.f_mul(&early.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)?)
        }
        Fault::LossIsNan => times(f64::NAN, model.training_step(batch, step)?),
        Fault::LossBroadcasts => {
            let loss = model.training_step(batch, step)?;
            let targets = Tensor::f_zeros([4], (loss.kind(), loss.device()))?;
            let outputs = loss.f_mul_scalar(0.0)?.f_expand([4, 1], false)?;
            Ok(loss.f_add(&outputs.f_sub(&targets)?.f_mean(None)?)?)
        }
        Fault::AlwaysSkips => times(f64::INFINITY, model.training_step(batch, step)?),
        Fault::LossInF16 => {
            // Multiplies the loss by a factor that truncates it to a multiple of 1/64. Autograd
            // treats the factor, which is close to 1, as a constant, so the gradient hardly
            // changes.
            let loss = model.training_step(batch, step)?;
            let steps_up = loss.f_detach()?.f_mul_scalar(64.0)?.f_trunc()?.f_div_scalar(64.0)?;
            Ok(loss.f_mul(&steps_up.f_div(&loss.f_detach()?)?)?)
        }
        Fault::UnwatchedStepWrong => {
            let wrong = !watched && steps.batches > BEFORE_CAPTURE;
            times(if wrong { 1.05 } else { 1.0 }, model.training_step(batch, step)?)
        }
        Fault::GradientSwitchedOff => {
            if steps.batches == 5
                && let Some(parameter) = parameters(model).first()
            {
                let _ = parameter.tensor.set_requires_grad(false);
            }
            model.training_step(batch, step)
        }
        Fault::CountsConverted => {
            if steps.batches == 2 {
                for (_, mut tensor, _) in named_tensors(model) {
                    if tensor.kind() == Kind::Int64 {
                        tensor.f_set_data(&tensor.f_to_kind(Kind::Int)?)?;
                    }
                }
            }
            model.training_step(batch, step)
        }
        Fault::StatisticsTwice => {
            let _ = model.training_step(batch, step)?;
            model.training_step(batch, step)
        }
        Fault::EvaluationMode => {
            let context = Context::new(step.context().policy(), false);
            in_context(&context, model, batch, step)
        }
        Fault::DropoutOff => {
            let context = Context::new(step.context().policy(), true).without_dropout();
            in_context(&context, model, batch, step)
        }
        Fault::DropoutOnInput => {
            let batch = Batch::from_any(batch)?;
            let input = batch.input.f_dropout(0.1, true)?;
            model.training_step(&Batch::new(input, batch.target)?.to_any()?, step)
        }
        Fault::SameMaskEachStep => {
            seed_everything(7)?;
            model.training_step(batch, step)
        }
        Fault::TargetsShifted => {
            let batch = Batch::from_any(batch)?;
            let target = batch.target.f_roll([1], [0])?;
            model.training_step(&Batch::new(batch.input, target)?.to_any()?, step)
        }
        Fault::MeasuresWithin => {
            let device = step.context().policy().device;
            if steps.meter.is_none() {
                steps.meter = Some(MemoryMeter::start(device)?);
            }
            let own = MemoryMeter::start(device)?;
            let loss = model.training_step(batch, step)?;
            for meter in steps.meter.iter().chain([&own]) {
                let _ = meter.read()?;
            }
            Ok(loss)
        }
        Fault::TakesTooMuch => {
            let loss = model.training_step(batch, step)?;
            // Allocates far more memory than a step of a small model needs. The memory is not used,
            // apart from one element.
            let room = Tensor::f_empty([1 << 27], (Kind::Float, loss.device()))?;
            Ok(loss.f_add(&room.f_select(0, 0)?.f_zero_()?)?)
        }
        _ => model.training_step(batch, step),
    }
}

pub(super) fn validation_step(
    fault: Fault,
    model: &mut dyn LightningModule,
    batch: &AnyBatch,
    step: &mut Step<'_>,
) -> Result<()> {
    match fault {
        Fault::DropoutInValidation => {
            let batch = Batch::from_any(batch)?;
            let input = batch.input.f_dropout(0.1, true)?;
            model.validation_step(&Batch::new(input, batch.target)?.to_any()?, step)
        }
        Fault::ValidatesInTrainingMode => {
            let context = Context::new(step.context().policy(), true);
            let mut log = Log::default();
            let (index, global_step) = step.place();
            let mut own = Step::new(&context, &mut log, index, global_step);
            model.validation_step(batch, &mut own)?;
            model.validation_step(batch, step)
        }
        Fault::ValidatesFirstBatch if step.batch_idx() > 0 => Ok(()),
        Fault::ValidationMovesWeights => {
            if let Some(parameter) = parameters(model).first() {
                let _ = no_grad(|| parameter.tensor.shallow_clone().f_add_scalar_(1e-4))?;
            }
            model.validation_step(batch, step)
        }
        _ => model.validation_step(batch, step),
    }
}

fn in_context(
    context: &Context,
    model: &mut dyn LightningModule,
    batch: &AnyBatch,
    step: &Step<'_>,
) -> Result<Tensor> {
    let mut log = Log::default();
    let (index, global_step) = step.place();
    let mut own = Step::new(context, &mut log, index, global_step);
    model.training_step(batch, &mut own)
}

/// Multiplies the input by 1000 and normalizes it with its variance, as a layer norm does. The
/// variance is computed in f16, where it overflows.
fn normed_in_f16(batch: &AnyBatch) -> Result<AnyBatch> {
    let batch = Batch::from_any(batch)?;
    let large = batch.input.f_mul_scalar(1000.0)?.f_to_kind(Kind::Half)?;
    let variance = large.f_square()?.f_mean_dim([-1_i64].as_slice(), true, Kind::Half)?;
    let normed = large.f_div(&variance.f_sqrt()?)?.f_to_kind(batch.input.kind())?;
    Batch::new(normed, batch.target)?.to_any()
}
