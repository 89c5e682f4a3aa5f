//! A value that is logged neither per step nor per epoch is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log(val_loss, on_epoch = false)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
