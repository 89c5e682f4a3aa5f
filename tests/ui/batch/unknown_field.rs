//! rustc reports an input that is not a field of the batch.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    ids: Tensor,
    labels: Tensor,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(id), target = labels)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids))]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct WithoutTarget {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
