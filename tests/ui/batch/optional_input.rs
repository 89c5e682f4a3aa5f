//! If `forward` takes a tensor, a field of type `Option<Tensor>` is refused as its input. The error
//! underlines the field, and says what to write instead.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    ids: Tensor,
    mask: Option<Tensor>,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(mask), target = ids)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids, mask), target = ids)]
#[forward(|x, mask| Ok(model(x)?.f_mul(mask)?))]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct OfTwo {
    #[layer(linear(64, 10))]
    model: Linear,
}

#[derive(LightningModule)]
#[batch(Tokens, inputs(ids, ids), target = ids)]
#[forward(|x, mask: Option<&Tensor>| Ok(model(x)?.f_mul(mask.unwrap_or(x))?))]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct OfATensor {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
