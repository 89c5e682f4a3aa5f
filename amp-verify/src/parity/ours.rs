//! Trains the model in Rust, for the comparison with its PyTorch version, and records the loss of
//! each batch. `trace` also records the largest gradient and the loss scale of each step.

use std::{cell::RefCell, path::Path, rc::Rc};

use amp_core::{
    Hook, Hyperparameters, LightningModule, Result, Trainer, TrainerConfig,
    callback::{Action, Callback},
    event::{Event, Skipped},
    hardware::seed_everything,
    memory::MemoryMeter,
    nn::parameters,
    optim::{Optimizers, TrainingPlan},
    precision::{Gradients, Precision, StepOutcome, Unscaled, is_floating},
    random::{self, RandomState},
    record::RunRecord,
    tch::{Device, Kind, Tensor, no_grad},
    trainer::StepAccess,
    weights,
};

use super::skips::{Attempt, LARGEST};
use crate::{
    case::Case,
    interceptor::{Intercepted, Interceptor},
    rounding::{moved, rounding_of},
};

/// Returns by how much a weight is perturbed at most, as a fraction of the weight: sixteen unit
/// roundoffs of f32 under 32-true, and one unit roundoff of the 16-bit dtype under a 16-bit
/// precision.
fn share(precision: Precision) -> f64 {
    match precision.compute() {
        kind @ (Kind::Half | Kind::BFloat16) => rounding_of(kind),
        _ => 1.0 / 1_048_576.0,
    }
}

/// Perturbs the model's weights at random, each by at most the fraction that [`share`] returns.
/// `number`, the number of the run, is the seed of the perturbation. The random generator's state
/// is restored afterwards.
fn move_weights(model: &dyn LightningModule, number: u64, precision: Precision) -> Result<()> {
    let before = RandomState::read(Device::Cpu)?;
    seed_everything(number)?;
    for parameter in parameters(model) {
        if is_floating(parameter.tensor.kind()) {
            let other = moved(&parameter.tensor, share(precision))?;
            no_grad(|| parameter.tensor.shallow_clone().f_copy_(&other))?;
        }
    }
    before.restore(Device::Cpu)
}

/// The results of training the model in Rust.
pub(super) struct Ours {
    /// The loss of each batch, in the order of training.
    pub(super) losses: Vec<f64>,
    /// The indices of the skipped optimizer steps, from 0.
    pub(super) skipped: Vec<u64>,
    pub(super) record: RunRecord,
    pub(super) peak_memory_bytes: u64,
    /// The training plan (the numbers of epochs and steps) from which the model built its
    /// optimizers and schedules. The PyTorch version receives the same plan.
    pub(super) plan: Option<TrainingPlan>,
    /// The values of all hyperparameters of the model.
    pub(super) hyperparameters: Hyperparameters,
}

/// Returns the trainer's options for the model and its PyTorch version. With them, a skipped step
/// advances the learning rate schedule and changes the running statistics of batch norms, as in a
/// PyTorch training loop.
pub(super) fn config(case: &Case, precision: Precision) -> Result<TrainerConfig> {
    let mut config = case.trainer(precision)?;
    config.recovery.skipped_step_advances = true;
    config.recovery.provenance = false;
    Ok(config)
}

/// Writes the initial weights to `weights_to` and trains the model in Rust.
pub(super) fn train(case: &Case, precision: Precision, weights_to: &Path) -> Result<Ours> {
    let config = config(case, precision)?;
    let _section = random::seeded(config.seed)?;
    let meter = MemoryMeter::start(config.device)?;
    let model = case.build()?;
    let hyperparameters = model.hyperparameters();
    weights::save(model.as_ref(), weights_to, [].into())?;
    let (kept, record) = fit(case, config, model, None)?;
    let peak_memory_bytes = meter.read()?.peak_allocated;
    let Kept { losses, skipped, plan } = kept;
    Ok(Ours { losses, skipped, record, peak_memory_bytes, plan, hyperparameters })
}

/// Trains the model in Rust under 32-true on its first `batches` batches, with initial weights that
/// are perturbed at random. Returns the loss of each batch.
pub(super) fn train_moved(case: &Case, number: u64, batches: u64) -> Result<Vec<f64>> {
    let config = config(case, Precision::F32True)?;
    let _section = random::seeded(config.seed)?;
    let model = case.build()?;
    move_weights(model.as_ref(), number, Precision::F32True)?;
    Ok(fit(case, config, model, Some(batches))?.0.losses)
}

/// The optimizer steps that a run attempted, and the losses of the run.
pub(super) struct Traced {
    pub(super) attempts: Vec<Attempt>,
    /// The loss of each batch, in the order of training.
    pub(super) losses: Vec<f64>,
    /// The indices of the skipped optimizer steps, from 0.
    pub(super) skipped: Vec<u64>,
    /// The loss scale at the end of the run.
    pub(super) scale: Option<f64>,
}

/// Trains the model in Rust and records the largest gradient and the loss scale of each step.
pub(super) fn trace(case: &Case, precision: Precision) -> Result<Traced> {
    traced(case, precision, None)
}

/// Trains the model in Rust as [`trace`] does, but only on the first `batches` batches, and with
/// initial weights that are perturbed at random.
pub(super) fn trace_moved(
    case: &Case,
    precision: Precision,
    number: u64,
    batches: u64,
) -> Result<Traced> {
    traced(case, precision, Some((number, batches)))
}

fn traced(case: &Case, precision: Precision, moved: Option<(u64, u64)>) -> Result<Traced> {
    let config = config(case, precision)?;
    let _section = random::seeded(config.seed)?;
    let model = case.build()?;
    if let Some((number, _)) = moved {
        move_weights(model.as_ref(), number, precision)?;
    }
    let scale = if precision.scales_loss() { config.numerics.scaler.init_scale } else { 1.0 };
    let seen = Rc::new(RefCell::new(Seen { scale, next: scale, ..Seen::default() }));
    let is_manual = model.optimizes_manually();
    let parameters = parameters(model.as_ref()).into_iter().map(|parameter| parameter.tensor);
    let parameters = if is_manual { parameters.collect() } else { Vec::new() };
    let mut model = Intercepted::new(model, Gauge { seen: Rc::clone(&seen), parameters });
    let mut listen = |event: &Event| -> Result<()> {
        let Seen { scale, next, skipped, .. } = &mut *seen.borrow_mut();
        match event {
            Event::Skipped(Skipped { attempt, .. }) if skipped.last() != Some(attempt) => {
                skipped.push(*attempt);
            }
            Event::Scale { scale: new, .. } => *next = *new,
            // A new loss scale applies from the next batch on. If the model optimizes manually, its
            // gradients are read after the scaler's update, but they were computed with the old
            // scale.
            Event::Batch { .. } => *scale = *next,
            _ => {}
        }
        Ok(())
    };
    let mut trainer = Trainer::new(config).subscribe(&mut listen);
    if let Some((_, batches)) = moved {
        trainer = trainer.callback(End { batches, seen: 0 });
    }
    let record = trainer.fit(&mut model, &case.data)?;
    let Seen { mut attempts, losses, skipped, .. } = seen.take();
    for attempt in &mut attempts {
        attempt.skipped = skipped.contains(&attempt.step);
    }
    Ok(Traced { attempts, losses, skipped, scale: record.end.scale })
}

/// What [`Gauge`] and the event listener record during a run.
#[derive(Default)]
struct Seen {
    /// The loss scale of the current batch.
    scale: f64,
    /// The loss scale from the next batch on.
    next: f64,
    skipped: Vec<u64>,
    attempts: Vec<Attempt>,
    losses: Vec<f64>,
}

/// A wrapper around the model that records the largest gradient of each step.
struct Gauge {
    seen: Rc<RefCell<Seen>>,
    /// The parameters of a model that optimizes manually. Their gradients are read after each
    /// batch. Empty for any other model, whose gradients are read before the optimizer's step.
    parameters: Vec<Tensor>,
}

impl Gauge {
    fn read<'a>(&self, gradients: impl Iterator<Item = &'a Tensor>) -> Result<()> {
        let size = |gradient: &Tensor| Ok(gradient.f_abs()?.f_max()?.f_to_kind(Kind::Double)?);
        let sizes = gradients.map(size).collect::<Result<Vec<_>>>()?;
        let Seen { scale, attempts, .. } = &mut *self.seen.borrow_mut();
        let largest = match sizes.is_empty() {
            true => 0.0,
            false => Tensor::f_stack(&sizes, 0)?.f_max()?.f_double_value(&[])? * *scale / LARGEST,
        };
        attempts.push(Attempt {
            step: attempts.len() as u64,
            scale: *scale,
            largest: Some(largest).filter(|largest| largest.is_finite()),
            skipped: false,
        });
        Ok(())
    }
}

impl Interceptor for Gauge {
    fn step_access(&self) -> StepAccess {
        StepAccess::InStep("parity reads the gradients of each step")
    }

    fn before_step(
        &mut self,
        _: &dyn LightningModule,
        gradients: &Gradients<Unscaled>,
        _: &Hook<'_>,
    ) -> Result<()> {
        self.read(gradients.named().map(|(_, gradient)| gradient))
    }

    fn after_batch(&mut self, loss: &Tensor) -> Result<()> {
        let loss = loss.f_to_kind(Kind::Double)?.f_double_value(&[])?;
        self.seen.borrow_mut().losses.push(loss);
        if self.parameters.is_empty() {
            return Ok(());
        }
        let gradients: Vec<Tensor> = self.parameters.iter().map(Tensor::grad).collect();
        self.read(gradients.iter().filter(|gradient| gradient.defined()))
    }
}

#[derive(Default)]
struct Kept {
    losses: Vec<f64>,
    skipped: Vec<u64>,
    plan: Option<TrainingPlan>,
}

/// Trains the model to the end, or only on the first `batches` batches. In the latter case, the
/// learning rate schedules are the same as in the whole run.
fn fit(
    case: &Case,
    config: TrainerConfig,
    model: Box<dyn LightningModule>,
    batches: Option<u64>,
) -> Result<(Kept, RunRecord)> {
    let kept = Rc::new(RefCell::new(Kept::default()));
    let mut model = Intercepted::new(model, Watch(Rc::clone(&kept)));
    let mut listen = |event: &Event| -> Result<()> {
        if let Event::Skipped(Skipped { attempt, .. }) = event {
            let skipped = &mut kept.borrow_mut().skipped;
            if skipped.last() != Some(attempt) {
                skipped.push(*attempt);
            }
        }
        Ok(())
    };
    let mut trainer = Trainer::new(config).subscribe(&mut listen);
    if let Some(batches) = batches {
        trainer = trainer.callback(End { batches, seen: 0 });
    }
    let record = trainer.fit(&mut model, &case.data)?;
    Ok((kept.take(), record))
}

/// A wrapper around the model that records the loss of each batch, and the training plan.
struct Watch(Rc<RefCell<Kept>>);

impl Interceptor for Watch {
    fn optimizers(&self, model: &dyn LightningModule, plan: &TrainingPlan) -> Result<Optimizers> {
        self.0.borrow_mut().plan = Some(*plan);
        model.configure_optimizers(plan)
    }

    fn after_batch(&mut self, loss: &Tensor) -> Result<()> {
        let loss = loss.f_to_kind(Kind::Double)?.f_double_value(&[])?;
        self.0.borrow_mut().losses.push(loss);
        Ok(())
    }
}

/// A callback that ends the run after `batches` batches.
struct End {
    batches: u64,
    seen: u64,
}

impl Callback for End {
    fn name(&self) -> String {
        "parity".to_owned()
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        self.seen += 1;
        let is_last = self.seen == self.batches;
        Ok(is_last.then(|| Action::Stop("enough losses".to_owned())).into_iter().collect())
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }
}
