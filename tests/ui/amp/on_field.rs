//! `#[amp]` on a field is refused, because it belongs on the struct.

use amp_core::prelude::*;

#[derive(Module)]
struct Block {
    #[amp(crate = "amp_core")]
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
