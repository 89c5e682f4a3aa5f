//! The field is of another type: rustc points at both.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Sequential,
}

fn main() {}
