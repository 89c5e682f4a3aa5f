//! It would never be shown.

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
