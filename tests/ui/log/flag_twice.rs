//! A flag that is given twice is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log(val_loss, prog_bar, prog_bar)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
