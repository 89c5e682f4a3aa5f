//! Generics, a lifetime, a where clause, optional and repeated layers, functions of one's own.

use std::{fmt::Debug, marker::PhantomData};

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[training_step(Self::noisy_step)]
#[configure_optimizers(optimizers::warm)]
pub(crate) struct Generic<'a, B, T = f32>
where
    B: Module + Debug,
    T: Default,
{
    #[hparam(default)]
    depth: usize,
    #[hparam(default = true)]
    norm: bool,
    #[layer]
    pub backbone: B,
    #[layer(repeat(depth as i64, |i| linear(if i == 0 { 32 } else { 64 }, 64)))]
    many: Vec<Linear>,
    #[layer(optional(norm, layer_norm(64)))]
    maybe: Option<LayerNorm>,
    #[layer(Self::make_head(64)?)]
    head: Linear,
    #[state(vec![0.0; depth])]
    seen: Vec<f64>,
    #[state]
    marker: PhantomData<&'a T>,
}
