//! `#[log(train_acc)]` is refused if `stage = val` restricts the metric to validation.

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
