//! Two `#[log]` attributes for one value are refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[log(val_loss, on_step)]
#[log(val_loss, prog_bar)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
