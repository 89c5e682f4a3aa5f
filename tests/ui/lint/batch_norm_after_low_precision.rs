//! A batch norm after a layer in half precision causes a warning, which this case makes an error.

#![deny(deprecated)]

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 32))]
    #[precision(fp16)]
    body: Linear,
    #[layer(sequential(batch_norm1d(32), linear(32, 10)))]
    head: Sequential,
}

fn main() {}
