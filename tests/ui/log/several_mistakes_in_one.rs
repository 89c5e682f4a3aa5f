//! Each mistake in one attribute is underlined at its place.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log(train_los(on_epoch), val_loss(progbar), val_acc(prog_bar))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
