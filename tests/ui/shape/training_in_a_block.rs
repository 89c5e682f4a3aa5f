//! A block has no loss of its own.

use amp_core::prelude::*;

#[derive(Module)]
#[loss(mse_loss)]
struct Block {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
