//! `nesterov` without a momentum is refused, as in torch.optim.SGD.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1, nesterov = true)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
