//! For PyTorch's `bfloat16`, the error suggests `bf16`.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    #[precision(bfloat16)]
    model: Linear,
}

fn main() {}
