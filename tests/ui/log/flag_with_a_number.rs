//! A number as the value of a flag is refused: a flag takes `true` or `false`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log(val_loss, prog_bar = 1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
