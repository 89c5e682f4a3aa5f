//! An output whose type does not implement `Tensors` is refused: precision regions cannot cast it.

use amp_core::prelude::*;

struct Output {
    logits: Tensor,
}

#[derive(Module)]
#[forward(|x| -> Result<Output> { Ok(Output { logits: model(x)? }) })]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

fn main() {}
