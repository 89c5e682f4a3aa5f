//! A model without a loss is refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {
    let _ = Net::builder().build().map(|net| net.name());
}
