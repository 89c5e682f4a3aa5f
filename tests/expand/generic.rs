//! A model with generics, a lifetime and a where clause. It has optional, repeated and checkpointed
//! layers, and functions written by the user for the training step, the optimizers and a hook.

use std::{fmt::Debug, marker::PhantomData};

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[training_step(Self::noisy_step)]
#[configure_optimizers(optimizers::warm)]
#[on_train_batch_end(Self::remember)]
pub(crate) struct Generic<'a, B, T = f32>
where
    B: Debug,
    T: Default,
{
    #[hparam(default)]
    depth: usize,
    #[hparam(default = true)]
    norm: bool,
    #[layer]
    pub(crate) backbone: B,
    #[layer(repeat(depth, |i| checkpoint(linear(if i == 0 { 32 } else { 64 }, 64))))]
    pub(crate) many: Vec<Checkpoint<Linear>>,
    #[layer(optional(norm, layer_norm(64)))]
    pub(crate) maybe: Option<LayerNorm>,
    #[layer(Self::make_head(64)?)]
    head: Linear,
    #[state(vec![0.0; depth])]
    pub(crate) losses: Vec<f64>,
    #[state]
    marker: PhantomData<&'a T>,
}

impl<B: Module + Debug, T: Default> Generic<'_, B, T> {
    fn make_head(width: i64) -> Result<Linear> {
        Linear::new(amp_core::nn::LinearConfig::new(width, 1))
    }

    fn noisy_step(&mut self, batch: &Batch, step: &mut Step<'_>) -> Result<Tensor> {
        let noisy = batch.input.f_add(&batch.input.f_randn_like()?)?;
        loss::mse_loss(&self.forward(&noisy, step.context())?, &batch.target)
    }

    fn remember(
        &mut self,
        loss: &Tensor,
        _: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        self.losses.push(loss.f_double_value(&[])?);
        hook.log("remembered_loss", loss, LogOptions::ON_EPOCH)
    }
}

mod optimizers {
    use amp_core::{optim::AdamW, prelude::*};

    pub(super) fn warm<M>(_: &M, _: &TrainingPlan) -> Result<OptimizerConfig> {
        Ok(OptimizerConfig::new(AdamW::default()))
    }
}
