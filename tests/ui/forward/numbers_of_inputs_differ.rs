//! Two calls of a block with different numbers of inputs are refused.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x, mask: &Tensor| block(&block(x)?, mask))]
struct Net<B> {
    #[layer]
    block: B,
}

fn main() {}
