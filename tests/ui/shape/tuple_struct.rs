//! A tuple struct is refused, because parameters are named after fields.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
struct Net(#[layer(linear(64, 10))] Linear);

fn main() {}
