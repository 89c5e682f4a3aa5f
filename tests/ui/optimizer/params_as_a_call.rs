//! `params(…)` is refused: `params` is a key whose value is a list.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3, params("model.*"))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
