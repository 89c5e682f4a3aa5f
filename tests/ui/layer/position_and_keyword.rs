//! An argument that is given both by position and by name is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10, in_features = 32))]
    model: Linear,
}

fn main() {}
