//! A field without an attribute is refused: it may be a layer, a tensor, a hyperparameter or state.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
    seen: u64,
}

fn main() {}
