//! An input with the name of a layer is refused, because the layer could not be called.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[forward(|model| model(model))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
