//! `#[precision]` on the struct is refused, because it belongs on a field.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[precision(fp32)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
