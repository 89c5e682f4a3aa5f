//! Our side: a run by the trainer, whose losses, or attempts at steps, are kept.

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
    rounding::moved,
};

/// How far the weights of a moved run are from the model's, relative to their size: sixteen roundings of f32.
const MOVED: f64 = 1.0 / 1_048_576.0;

/// What a run gave.
pub(super) struct Ours {
    /// Of each batch.
    pub(super) losses: Vec<f64>,
    /// The optimizer steps that were skipped, from 0.
    pub(super) skipped: Vec<u64>,
    pub(super) record: RunRecord,
    pub(super) peak_memory_bytes: u64,
    /// What optimizers and schedules were made for.
    pub(super) plan: Option<TrainingPlan>,
    /// What the model was built with.
    pub(super) hyperparameters: Hyperparameters,
}

/// The options that both sides train with. A skipped step moves the schedule and the batch statistics, as in a
/// PyTorch loop.
pub(super) fn config(case: &Case, precision: Precision) -> Result<TrainerConfig> {
    let mut config = case.trainer(precision)?;
    config.recovery.skipped_step_advances = true;
    config.recovery.provenance = false;
    Ok(config)
}

/// Trains the case, and writes the initial weights to `weights_to`.
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

/// The first losses of a run in 32-true whose initial weights were moved at random.
pub(super) fn train_moved(case: &Case, number: u64, batches: u64) -> Result<Vec<f64>> {
    let config = config(case, Precision::F32True)?;
    let _section = random::seeded(config.seed)?;
    let model = case.build()?;
    let before = RandomState::read(Device::Cpu)?;
    seed_everything(number)?;
    for parameter in parameters(model.as_ref()) {
        if is_floating(parameter.tensor.kind()) {
            let other = moved(&parameter.tensor, MOVED)?;
            no_grad(|| parameter.tensor.shallow_clone().f_copy_(&other))?;
        }
    }
    before.restore(Device::Cpu)?;
    Ok(fit(case, config, model, Some(batches))?.0.losses)
}

/// The attempts of a run.
pub(super) struct Traced {
    pub(super) attempts: Vec<Attempt>,
    /// The optimizer steps that were skipped, from 0.
    pub(super) skipped: Vec<u64>,
    /// The loss scale at the end.
    pub(super) scale: Option<f64>,
}

/// Trains the case, and reads the gradients of each step.
pub(super) fn trace(case: &Case, precision: Precision) -> Result<Traced> {
    let config = config(case, precision)?;
    let _section = random::seeded(config.seed)?;
    let model = case.build()?;
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
            // The gradients of a model that optimizes manually are read after the scale has moved.
            Event::Batch { .. } => *scale = *next,
            _ => {}
        }
        Ok(())
    };
    let record = Trainer::new(config).subscribe(&mut listen).fit(&mut model, &case.data)?;
    let Seen { mut attempts, skipped, .. } = seen.take();
    for attempt in &mut attempts {
        attempt.skipped = skipped.contains(&attempt.step);
    }
    Ok(Traced { attempts, skipped, scale: record.end.scale })
}

/// What is seen of a run.
#[derive(Default)]
struct Seen {
    /// The loss scale of the batch, and of the one after it.
    scale: f64,
    next: f64,
    skipped: Vec<u64>,
    attempts: Vec<Attempt>,
}

/// Reads the unscaled gradients of each step.
struct Gauge {
    seen: Rc<RefCell<Seen>>,
    /// Those of a model that optimizes manually, whose gradients are read after the batch.
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
        StepAccess::InStep("the gradients of each step are read")
    }

    fn before_step(
        &mut self,
        _: &dyn LightningModule,
        gradients: &Gradients<Unscaled>,
        _: &Hook<'_>,
    ) -> Result<()> {
        self.read(gradients.named().map(|(_, gradient)| gradient))
    }

    fn after_batch(&mut self, _: &Tensor) -> Result<()> {
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

/// Runs the model, to the end or for so many batches. The plan, which schedules depend on, is the whole run's.
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

/// Keeps the losses.
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

/// Ends the run after so many batches.
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
