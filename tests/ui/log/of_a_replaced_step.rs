//! `#[log(train_loss)]` is refused next to `#[training_step]`, whose function must log the loss.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[training_step(Self::step)]
#[log(train_loss, prog_bar)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
