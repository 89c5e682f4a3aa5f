//! `#[batch]` is refused if it names fewer fields as inputs than `forward` has inputs.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    ids: Tensor,
    labels: Tensor,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids), target = labels)]
#[forward(|x, mask: Option<&Tensor>| Ok(model(x)?.f_mul(mask.unwrap_or(x))?))]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
