//! rustc reports a target that is not a field of the batch.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    ids: Tensor,
    labels: Tensor,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids), target = label)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Misspelt {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids), target = labels)]
#[loss(cross_entropy)]
#[metric(accuracy, target = next)]
#[optimizer(sgd, lr = 0.1)]
struct OfAMetric {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
