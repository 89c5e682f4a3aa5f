//! A user's item called `__amp` is refused: generated code imports amp-core under this name.

use amp_core as __amp;
use amp_core::prelude::*;

#[derive(LightningModule)]
#[amp(crate = __amp)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[hparam(default = 64)]
    width: i64,
    #[layer(linear(width, 10))]
    model: Linear,
}

fn main() {
    let _ = Net::builder().width(32).build();
}
