//! A parameter that `forward` never uses is refused, because it would never be trained.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x| model(x))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
    #[parameter(shape = [10], init = ones)]
    scale: Tensor,
}

fn main() {}
