//! A call of the user's own function in `#[layer]` is refused if it is not written as a path.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[layer(make_head(64))]
    model: Linear,
}

fn make_head(width: i64) -> Linear {
    unimplemented!("{width}")
}

fn main() {}
