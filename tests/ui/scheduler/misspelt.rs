//! For a misspelt scheduler, the error suggests the right one.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(cosine_anealing, t_max = 50)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
