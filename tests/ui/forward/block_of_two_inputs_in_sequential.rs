//! A block with two inputs is refused in `sequential`, which passes one tensor from layer to layer.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x, t| Ok(fc(x)?.f_add(t)?))]
struct Block {
    #[layer(linear(64, 64))]
    fc: Linear,
}

#[derive(Module)]
struct Net {
    #[layer(sequential(linear(64, 64), Block::builder().build()?))]
    body: Sequential,
}

fn main() {}
