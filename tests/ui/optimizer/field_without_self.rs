//! A field without `self.` in an option is refused, because options are evaluated in a method.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = learning_rate)]
struct Net {
    #[hparam(default = 0.1)]
    learning_rate: f64,
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
