//! A closure in `#[forward]` whose return type is not a `Result` is refused.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x| -> (Tensor, Tensor) { (model(x)?, model(x)?) })]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
