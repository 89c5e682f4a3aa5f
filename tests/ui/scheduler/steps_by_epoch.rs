//! A number of steps is refused next to `interval = epoch`, because the schedule would never end.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[scheduler(one_cycle, max_lr = 1e-2, total_steps = plan.estimated_stepping_batches, interval = epoch)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
