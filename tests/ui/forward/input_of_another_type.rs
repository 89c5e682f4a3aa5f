//! An input whose type does not implement `Tensors` is refused: precision regions cannot cast it.

use amp_core::prelude::*;

struct Options {
    scale: f64,
}

#[derive(Module)]
#[forward(|x, options: &Options| Ok(model(x)?.f_mul_scalar(options.scale)?))]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
