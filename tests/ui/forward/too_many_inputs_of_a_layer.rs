//! rustc reports a linear layer that is called with two inputs.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x, mask: Option<&Tensor>| model(x, mask))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
