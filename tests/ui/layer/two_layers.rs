//! Two layers in one `#[layer]` are refused: several layers need `sequential`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10), relu)]
    model: Linear,
}

fn main() {}
