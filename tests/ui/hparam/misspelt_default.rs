//! A misspelt `default` causes only an error that suggests the right word, and none at its setter.

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
