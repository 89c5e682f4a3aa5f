//! A precision in quotes is refused: it is written without quotes.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    #[precision("fp32")]
    model: Linear,
}

fn main() {}
