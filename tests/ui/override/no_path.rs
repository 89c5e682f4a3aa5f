//! A call is refused where the path of the user's function is expected.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[optimizer(adamw, lr = 1e-3)]
#[loss(cross_entropy)]
#[training_step(Self::step())]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
