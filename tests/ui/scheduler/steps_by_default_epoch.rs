//! A number of steps is refused in a scheduler that by default advances once per epoch.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(cosine_annealing, t_max = plan.estimated_stepping_batches)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
