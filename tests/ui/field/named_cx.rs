//! A layer cannot be called `cx`, because `cx` is the context in `forward`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    cx: Linear,
}

fn main() {}
