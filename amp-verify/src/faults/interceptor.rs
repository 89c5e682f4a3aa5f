//! An interceptor that puts a fault (a mistake on purpose) into a run. It receives the trainer's
//! calls to the model and changes them.

use std::{cell::Cell, rc::Rc};

use amp_core::{
    Hook, LightningModule, Result, Step,
    data::AnyBatch,
    nn::{Parameter, Role, named_tensors, parameters},
    optim::{AdamW, Optimizers, TrainingPlan},
    precision::{Gradients, Precision, StepOutcome, Unscaled},
    tch::{Kind, Tensor, no_grad},
    trainer::StepAccess,
};

use super::{Fault, loss, optimizer, schedule};
use crate::interceptor::Interceptor;

/// An interceptor that puts a fault (a mistake on purpose) into a run.
pub struct Faulty {
    fault: Fault,
    precision: Precision,
    /// The gradients of the previous step, for the fault that adds the gradients of each step to
    /// those of the next step.
    stale: Vec<Tensor>,
    /// Whether the gate observes each step of the run. Only then does the trainer call
    /// `before_step`, which sets this to true. Some faults affect only the runs in which it stays
    /// false.
    watched: Rc<Cell<bool>>,
    steps: loss::Steps,
    /// The values of the model's buffers before the first step, for the fault that restores them
    /// after each forward pass.
    buffers: Vec<Tensor>,
    /// Tensors that are never freed, for the fault that leaks memory.
    leaked: Vec<Tensor>,
}

impl Faulty {
    /// Creates the interceptor that puts `fault` into a run under `precision`. If the fault does
    /// not affect this precision, the interceptor changes nothing.
    pub fn new(fault: Fault, precision: Precision) -> Self {
        Self {
            fault,
            precision,
            stale: Vec::new(),
            watched: Rc::default(),
            steps: loss::Steps::default(),
            buffers: Vec::new(),
            leaked: Vec::new(),
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.fault.strikes(self.precision).then_some(self.fault)
    }
}

/// Returns the model's buffers.
fn buffers(model: &dyn LightningModule) -> impl Iterator<Item = Tensor> {
    let tensors = named_tensors(model).into_iter();
    tensors.filter(|(_, _, role)| *role == Role::Buffer).map(|(_, tensor, _)| tensor)
}

/// The norm to which the fault `ClipBeforeUnscale` clips the gradients, which are still multiplied
/// by the loss scale.
const CLIP: f64 = 1.0;
/// The number of elements of the tensor that a fault leaks in each step.
const ELEMENTS: i64 = 1 << 16;

impl Interceptor for Faulty {
    fn step_access(&self) -> StepAccess {
        match self.fault() {
            Some(
                Fault::SkipUnscale
                | Fault::UnscaleTwice
                | Fault::ClipBeforeUnscale
                | Fault::WrongScaleOnOneLayer
                | Fault::GradientOfOneLayerLost
                | Fault::StaleGradients
                | Fault::NoisyGradients
                | Fault::SmallGradientsLost,
            ) => StepAccess::InStep("a fault changes the gradients"),
            Some(
                Fault::DropFoundInf
                | Fault::Bf16Weights
                | Fault::TruncatingRounding
                | Fault::StatisticsFrozen
                | Fault::WeightNotFinite,
            ) => StepAccess::InStep("a fault changes the weights"),
            _ => StepAccess::Deferred,
        }
    }

    fn training_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        step: &mut Step<'_>,
    ) -> Result<Tensor> {
        let Some(fault) = self.fault() else { return model.training_step(batch, step) };
        if fault == Fault::StatisticsFrozen && self.buffers.is_empty() {
            let copies = buffers(model).map(|buffer| Ok(buffer.f_detach_copy()?));
            self.buffers = copies.collect::<Result<_>>()?;
        }
        let watched = self.watched.get();
        let loss = loss::training_step(fault, &mut self.steps, watched, model, batch, step)?;
        for (now, first) in buffers(model).zip(&self.buffers) {
            // Writes through `data`, because autograd would refuse a change of buffers that it has
            // saved for the backward pass.
            no_grad(|| now.f_data()?.f_copy_(first))?;
        }
        Ok(loss)
    }

    fn validation_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        step: &mut Step<'_>,
    ) -> Result<()> {
        match self.fault() {
            Some(fault) => loss::validation_step(fault, model, batch, step),
            None => model.validation_step(batch, step),
        }
    }

    fn optimizers(&self, model: &dyn LightningModule, plan: &TrainingPlan) -> Result<Optimizers> {
        let replaced = |optimizer: AdamW| -> Result<Optimizers> {
            let own = model.configure_optimizers(plan)?;
            Ok(own.map(|config| config.wrap_optimizer(|_| Box::new(optimizer))))
        };
        match self.fault() {
            Some(Fault::NothingLearns) => replaced(AdamW { lr: 1e-12, ..AdamW::default() }),
            Some(Fault::LearningRateDoubled) => replaced(AdamW { lr: 2e-3, ..AdamW::default() }),
            // Drops the weight decay under every precision but 32-true. Under 32-true, the weight
            // decay is so large that the weights of the two runs differ clearly after a few steps.
            Some(Fault::WeightDecayDropped) => {
                let weight_decay = if self.precision == Precision::F32True { 1.0 } else { 0.0 };
                replaced(AdamW { weight_decay, ..AdamW::default() })
            }
            Some(fault) => {
                let watched = Rc::clone(&self.watched);
                let built = model.configure_optimizers(plan)?;
                Ok(built.map(|config| {
                    let watched = Rc::clone(&watched);
                    config
                        .wrap_optimizer(|inner| optimizer::broken(fault, watched, inner))
                        .wrap_scheduler(|inner| schedule::broken(fault, inner))
                }))
            }
            None => model.configure_optimizers(plan),
        }
    }

    fn before_step(
        &mut self,
        _: &dyn LightningModule,
        gradients: &Gradients<Unscaled>,
        hook: &Hook<'_>,
    ) -> Result<()> {
        let Some(fault) = self.fault() else { return Ok(()) };
        self.watched.set(true);
        let scale = hook.scale.unwrap_or(1.0);
        let times = |factor: f64| -> Result<()> {
            for (_, gradient) in gradients.named() {
                let _ = gradient.shallow_clone().f_mul_scalar_(factor)?;
            }
            Ok(())
        };
        match fault {
            Fault::SkipUnscale => times(scale),
            Fault::UnscaleTwice => times(1.0 / scale),
            Fault::ClipBeforeUnscale => {
                let norm = scale * gradients.norm()?.f_double_value(&[])?;
                times((CLIP / (norm + 1e-6)).min(1.0))
            }
            Fault::WrongScaleOnOneLayer | Fault::GradientOfOneLayerLost => {
                let factor = if fault == Fault::WrongScaleOnOneLayer { 2.0 } else { 0.0 };
                if let Some((_, gradient)) = gradients.named().next() {
                    let _ = gradient.shallow_clone().f_mul_scalar_(factor)?;
                }
                Ok(())
            }
            Fault::StaleGradients => {
                for (at, (_, gradient)) in gradients.named().enumerate() {
                    let mut gradient = gradient.shallow_clone();
                    if let Some(old) = self.stale.get(at) {
                        let _ = gradient.f_add_(old)?;
                    }
                    let kept = gradient.f_detach_copy()?;
                    match self.stale.get_mut(at) {
                        Some(old) => *old = kept,
                        None => self.stale.push(kept),
                    }
                }
                Ok(())
            }
            Fault::SmallGradientsLost => {
                for (_, gradient) in gradients.named() {
                    let size = gradient.f_abs()?;
                    let kept = size.f_ge_tensor(&size.f_max()?.f_mul_scalar(0.01)?)?;
                    let kept = kept.f_to_kind(gradient.kind())?;
                    let _ = gradient.shallow_clone().f_mul_(&kept)?;
                }
                Ok(())
            }
            Fault::NoisyGradients => {
                for (_, gradient) in gradients.named() {
                    let noise = gradient.f_randn_like()?.f_mul(&gradient.f_std(false)?)?;
                    let _ = gradient.shallow_clone().f_add_(&noise.f_mul_scalar(0.3)?)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn after_step(
        &mut self,
        model: &dyn LightningModule,
        outcome: &StepOutcome,
        hook: &Hook<'_>,
    ) -> Result<()> {
        let fault = self.fault();
        if fault == Some(Fault::WeightNotFinite)
            && hook.global_step == 20
            && let Some(last) = parameters(model).last()
        {
            let _ = no_grad(|| last.tensor.shallow_clone().f_fill_(f64::NAN))?;
        }
        if fault == Some(Fault::LeaksEachStep)
            && let Some(Parameter { tensor, .. }) = parameters(model).first()
        {
            self.leaked.push(Tensor::f_zeros([ELEMENTS], (Kind::Float, tensor.device()))?);
        }
        if *outcome != StepOutcome::Applied && fault == Some(Fault::DropFoundInf) {
            for Parameter { tensor, .. } in parameters(model) {
                let _ = no_grad(|| tensor.shallow_clone().f_add_scalar_(1e-3))?;
            }
        }
        Ok(())
    }
}
