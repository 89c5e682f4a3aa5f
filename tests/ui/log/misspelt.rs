//! For a misspelt name in `#[log]`, the error suggests the right one.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log(train_los, on_epoch)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
