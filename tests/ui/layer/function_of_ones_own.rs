//! In `#[layer]`, a call of the user's own function needs a path, as in `self::make_head(…)`.

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
