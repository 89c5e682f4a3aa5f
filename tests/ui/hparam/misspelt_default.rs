//! A close name is suggested; the setter is still there.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net {
    #[hparam(defualt = 64)]
    width: i64,
    #[layer(linear(width, 10))]
    model: Linear,
}

fn main() {
    let _ = Net::builder().width(32).build();
}
