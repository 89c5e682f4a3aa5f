//! A name without flags in `#[log]` is refused, because it would change nothing.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log(train_loss(prog_bar), val_loss)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
