//! The bound is the user's to write.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net<M> {
    #[layer]
    backbone: M,
}

fn main() {}
