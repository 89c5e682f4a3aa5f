//! `#[log]` of a training value is refused for a metric that is computed only in validation.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[metric(accuracy, name = acc, stage = val)]
#[log(train_acc)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
