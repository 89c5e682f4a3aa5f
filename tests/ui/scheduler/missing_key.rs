//! The schedule `cosine_annealing` without the key `t_max` is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(cosine_annealing, eta_min = 1e-5)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
