//! Two `#[amp(crate = …)]` attributes on one struct are refused.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[amp(crate = amp_core)]
#[amp(crate = ::amp_core)]
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
