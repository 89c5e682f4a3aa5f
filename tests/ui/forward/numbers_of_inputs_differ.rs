//! A mask that is absent is `None`.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x, mask: &Tensor| block(&block(x)?, mask))]
struct Net<B> {
    #[layer]
    block: B,
}

fn main() {}
