//! `#[loss]` on a block (`derive(Module)`) is refused, because it belongs on the model.

use amp_core::prelude::*;

#[derive(Module)]
#[loss(mse_loss)]
struct Block {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
