//! A user's own schedule without an interval is refused: it may count steps or epochs.

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
