//! Mistakes that implementations of mixed precision have made, each built on what is public.

use amp_core::{
    Hook, LightningModule, Result, Step, TrainerConfig,
    data::{AnyBatch, Batch, BatchType, DataModule},
    nn::{Parameter, parameters},
    optim::{AdamW, OptimizerConfig, Optimizers, TrainingPlan},
    precision::{AutocastGuard, Gradients, Precision, StepOutcome, Unscaled},
    tch::{Kind, Tensor, no_grad},
    trainer::StepAccess,
};
use serde::{Deserialize, Serialize};

use crate::tap::Tap;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "`about` says what each does")]
pub enum Fault {
    SkipUnscale,
    UnscaleTwice,
    ClipBeforeUnscale,
    DropFoundInf,
    LoseStateOnLoad,
    Tf32Baseline,
    AutocastOff,
    TruncatingRounding,
    Bf16Weights,
    SchedulerMovesOnSkip,
    WrongScaleOnOneLayer,
    LayerNormInF16,
    WeightDecayDropped,
    SeedNotPaired,
    ValidatesOnTraining,
    BothValidateOnTraining,
    LossDividedTwice,
    GradientOfOneLayerLost,
    AlwaysSkips,
    LossIsNan,
    NothingLearns,
    LearningRateDoubled,
    StaleGradients,
    NoisyGradients,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::SkipUnscale,
        Self::UnscaleTwice,
        Self::ClipBeforeUnscale,
        Self::DropFoundInf,
        Self::LoseStateOnLoad,
        Self::Tf32Baseline,
        Self::AutocastOff,
        Self::TruncatingRounding,
        Self::Bf16Weights,
        Self::SchedulerMovesOnSkip,
        Self::WrongScaleOnOneLayer,
        Self::LayerNormInF16,
        Self::WeightDecayDropped,
        Self::SeedNotPaired,
        Self::ValidatesOnTraining,
        Self::BothValidateOnTraining,
        Self::LossDividedTwice,
        Self::GradientOfOneLayerLost,
        Self::AlwaysSkips,
        Self::LossIsNan,
        Self::NothingLearns,
        Self::LearningRateDoubled,
        Self::StaleGradients,
        Self::NoisyGradients,
    ];

    /// What is wrong.
    pub fn about(self) -> &'static str {
        match self {
            Self::SkipUnscale => "gradients reach the optimizer with the loss scale",
            Self::UnscaleTwice => "gradients are divided by the loss scale twice",
            Self::ClipBeforeUnscale => "scaled gradients are clipped",
            Self::DropFoundInf => "a step is taken although a gradient is infinite",
            Self::LoseStateOnLoad => {
                "a resumed run has its weights, but a new scaler and optimizer"
            }
            Self::Tf32Baseline => "the 32-true baseline may multiply in TF32, as it does on CUDA",
            Self::AutocastOff => "autocast does nothing",
            Self::TruncatingRounding => "weights are rounded towards zero",
            Self::Bf16Weights => "master weights are kept in bf16",
            Self::SchedulerMovesOnSkip => "a skipped step moves the schedule",
            Self::WrongScaleOnOneLayer => "one layer's gradients are scaled twice as much",
            Self::LayerNormInF16 => "a norm's variance is taken in f16, where it overflows",
            Self::WeightDecayDropped => "the optimizer forgets its weight decay",
            Self::SeedNotPaired => "the precision runs with another seed than the baseline",
            Self::ValidatesOnTraining => "the precision is validated on the training set",
            Self::BothValidateOnTraining => "both are validated on the training set",
            Self::LossDividedTwice => "the loss is divided by the accumulated batches twice",
            Self::GradientOfOneLayerLost => "one layer gets no gradient",
            Self::AlwaysSkips => "every step overflows",
            Self::LossIsNan => "the loss is not a number",
            Self::NothingLearns => "neither run moves its weights, and both agree",
            Self::LearningRateDoubled => "the learning rate is twice the baseline's",
            Self::StaleGradients => "gradients are not cleared between steps",
            Self::NoisyGradients => "gradients carry noise of 0.3 of their size",
        }
    }

    /// What a model must do so that the fault changes its numbers; `None` where any model will do.
    ///
    /// A fault with a need is injected only into a model that says by
    /// [`Model::reveals`](crate::Model::reveals) that it has what is needed.
    pub fn needs(self) -> Option<&'static str> {
        match self {
            Self::SkipUnscale | Self::UnscaleTwice => {
                Some("an optimizer that feels the size of gradients, as AdamW with a large epsilon")
            }
            Self::ClipBeforeUnscale => Some("gradient clipping that takes effect"),
            Self::SchedulerMovesOnSkip => Some("a learning rate that changes every step"),
            Self::LossDividedTwice => Some("accumulation over several batches"),
            Self::LayerNormInF16 => Some("a layer norm whose input has a large variance"),
            _ => None,
        }
    }

    /// Whether the baseline is another with this fault.
    pub(crate) fn touches_baseline(self) -> bool {
        self.strikes(Precision::F32True) || self == Self::Tf32Baseline
    }

    fn strikes(self, precision: Precision) -> bool {
        let both = matches!(
            self,
            Self::BothValidateOnTraining | Self::NothingLearns | Self::WeightDecayDropped
        );
        both || precision != Precision::F32True
    }

    pub(crate) fn seed(fault: Option<Self>, precision: Precision, seed: u64) -> u64 {
        match fault {
            Some(Self::SeedNotPaired) if precision != Precision::F32True => seed + 1_000_003,
            _ => seed,
        }
    }

    pub(crate) fn data(fault: Option<Self>, precision: Precision, data: &mut DataModule) {
        if let Some(fault @ (Self::ValidatesOnTraining | Self::BothValidateOnTraining)) = fault
            && fault.strikes(precision)
        {
            data.val = data.train.clone().into();
        }
    }

    pub(crate) fn config(fault: Option<Self>, precision: Precision, config: &mut TrainerConfig) {
        match fault {
            Some(Self::SchedulerMovesOnSkip) => config.recovery.skipped_step_advances = true,
            Some(Self::ClipBeforeUnscale) if precision.scales_loss() => {
                config.optimization.gradient_clip = None
            }
            _ => {}
        }
    }

    pub(crate) fn loses_state(fault: Option<Self>) -> bool {
        fault == Some(Self::LoseStateOnLoad)
    }
}

/// Breaks a run.
pub struct Faulty {
    fault: Fault,
    precision: Precision,
    stale: Vec<Tensor>,
}

impl Faulty {
    /// Breaks runs of `precision`, where the fault is one of theirs.
    pub fn new(fault: Fault, precision: Precision) -> Self {
        Self { fault, precision, stale: Vec::new() }
    }

    fn fault(&self) -> Option<Fault> {
        self.fault.strikes(self.precision).then_some(self.fault)
    }
}

/// The limit that the models with clipping have.
const CLIP: f64 = 1.0;

impl Tap for Faulty {
    fn step_access(&self) -> StepAccess {
        match self.fault() {
            Some(
                Fault::SkipUnscale
                | Fault::UnscaleTwice
                | Fault::ClipBeforeUnscale
                | Fault::WrongScaleOnOneLayer
                | Fault::GradientOfOneLayerLost
                | Fault::StaleGradients
                | Fault::NoisyGradients,
            ) => StepAccess::Within("a fault is in the gradients"),
            Some(Fault::DropFoundInf | Fault::Bf16Weights | Fault::TruncatingRounding) => {
                StepAccess::Within("a fault is in the weights")
            }
            _ => StepAccess::Late,
        }
    }

    fn training_step(
        &mut self,
        model: &mut dyn LightningModule,
        batch: &AnyBatch,
        step: &mut Step<'_>,
    ) -> Result<Tensor> {
        match self.fault() {
            Some(Fault::AutocastOff) => {
                let _off = AutocastGuard::off(step.context().policy().device)?;
                model.training_step(batch, step)
            }
            Some(Fault::LayerNormInF16) => {
                // The variance of activations of a thousand, squared in f16.
                let batch = Batch::from_any(batch)?;
                let large = batch.input.f_mul_scalar(1000.0)?.f_to_kind(Kind::Half)?;
                let variance =
                    large.f_square()?.f_mean_dim([-1_i64].as_slice(), true, Kind::Half)?;
                let normed = large.f_div(&variance.f_sqrt()?)?.f_to_kind(batch.input.kind())?;
                model.training_step(&Batch::new(normed, batch.target)?.to_any()?, step)
            }
            Some(Fault::LossDividedTwice) => {
                Ok(model.training_step(batch, step)?.f_div_scalar(4.0)?)
            }
            Some(Fault::LossIsNan) => {
                Ok(model.training_step(batch, step)?.f_mul_scalar(f64::NAN)?)
            }
            Some(Fault::AlwaysSkips) => {
                Ok(model.training_step(batch, step)?.f_mul_scalar(f64::INFINITY)?)
            }
            _ => model.training_step(batch, step),
        }
    }

    fn optimizers(&self, model: &dyn LightningModule, plan: &TrainingPlan) -> Result<Optimizers> {
        match self.fault() {
            Some(Fault::NothingLearns) => {
                Ok(OptimizerConfig::new(AdamW { lr: 1e-12, ..AdamW::default() }).into())
            }
            Some(Fault::LearningRateDoubled) => {
                Ok(OptimizerConfig::new(AdamW { lr: 2e-3, ..AdamW::default() }).into())
            }
            // A decay that matters within few steps; the baseline keeps it.
            Some(Fault::WeightDecayDropped) => {
                let weight_decay = if self.precision == Precision::F32True { 1.0 } else { 0.0 };
                Ok(OptimizerConfig::new(AdamW { weight_decay, ..AdamW::default() }).into())
            }
            _ => model.configure_optimizers(plan),
        }
    }

    fn before_step(
        &mut self,
        _: &dyn LightningModule,
        gradients: &Gradients<Unscaled>,
        hook: &Hook<'_>,
    ) -> Result<()> {
        let Some(fault) = self.fault() else { return Ok(()) };
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
        _: &Hook<'_>,
    ) -> Result<()> {
        let fault = self.fault();
        if *outcome != StepOutcome::Applied {
            if fault == Some(Fault::DropFoundInf) {
                for Parameter { tensor, .. } in parameters(model) {
                    let _ = no_grad(|| tensor.shallow_clone().f_add_scalar_(1e-3))?;
                }
            }
            return Ok(());
        }
        let rounded = |tensor: &Tensor| -> Result<Option<Tensor>> {
            Ok(match fault {
                Some(Fault::Bf16Weights) => {
                    Some(tensor.f_to_kind(Kind::BFloat16)?.f_to_kind(tensor.kind())?)
                }
                Some(Fault::TruncatingRounding) => {
                    // 2⁻¹³: f16's spacing between 0.125 and 0.25, where most weights are.
                    let steps = tensor.f_mul_scalar(8192.0)?.f_trunc()?;
                    Some(steps.f_div_scalar(8192.0)?)
                }
                _ => None,
            })
        };
        for Parameter { tensor, .. } in parameters(model) {
            no_grad(|| -> Result<()> {
                if let Some(rounded) = rounded(&tensor)? {
                    tensor.shallow_clone().f_copy_(&rounded)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
