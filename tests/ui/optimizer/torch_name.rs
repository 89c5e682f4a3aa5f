//! For an optimizer's class name in PyTorch, the error gives the name in `#[optimizer]`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(AdamW, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
