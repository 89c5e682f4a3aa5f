//! A user's own scheduler needs `interval = step` or `interval = epoch`, as it has no default.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
#[scheduler(amp_core::optim::StepLr, step_size = 5)]
struct Net {
    #[layer(linear(4, 1))]
    model: Linear,
}

fn main() {}
