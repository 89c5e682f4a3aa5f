//! `#[log]` on a field is refused, because it belongs on the struct.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    #[log(train_loss, prog_bar)]
    model: Linear,
}

fn main() {}
