//! A target of type `Option<Tensor>` is refused, because losses and metrics compare the output with
//! a tensor. The error underlines the field, and says what to write instead.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    ids: Tensor,
    labels: Option<Tensor>,
    next: Tensor,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids), target = labels)]
#[loss(cross_entropy)]
#[metric(accuracy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids), target = next)]
#[loss(cross_entropy)]
#[metric(accuracy, target = labels)]
#[optimizer(sgd, lr = 0.1)]
struct OfAMetric {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids), target = batch)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct WholeBatch {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids), target = labels)]
#[loss(with = |output, target| loss::cross_entropy(output, target))]
#[optimizer(sgd, lr = 0.1)]
struct InAClosure {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
