//! For the struct, but on a field.

use amp_core::prelude::*;

#[derive(Module)]
struct Block {
    #[amp(crate = "amp_core")]
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
