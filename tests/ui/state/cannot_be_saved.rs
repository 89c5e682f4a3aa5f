//! State whose type cannot be saved is refused; `#[transient]` takes it.

use amp_core::prelude::*;

#[derive(Default)]
struct Cache;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
    #[state]
    cache: Cache,
    #[transient]
    fine: Cache,
}

fn main() {}
