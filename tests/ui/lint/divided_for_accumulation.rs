//! A loss that divides by the accumulation steps is refused, because the trainer divides.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(with = |output, target| Ok(loss::mse_loss(output, target)? / self.accumulation_steps))]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
