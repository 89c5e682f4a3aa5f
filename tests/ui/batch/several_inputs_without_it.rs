//! A model with two inputs needs `#[batch]`: the default batch has one input and one target.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[forward(|x, mask: Option<&Tensor>| Ok(model(x)?.f_mul(mask.unwrap_or(x))?))]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
