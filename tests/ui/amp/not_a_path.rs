//! A value of `crate` that is not a path is refused, such as a crate's name with a version.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[amp(crate = "amp-core 0.1")]
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
