//! For an unknown name in `#[log]`, the error lists the values that can be logged.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log(train_acc, on_epoch)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
