//! rustc reports a block with two inputs that is called with one.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x, t| Ok(fc(x)?.f_add(t)?))]
struct Block {
    #[layer(linear(64, 64))]
    fc: Linear,
}

#[derive(Module)]
#[forward(|x| block(x))]
struct Net {
    #[layer(Block::builder().build()?)]
    block: Block,
}

#[derive(Module)]
#[forward(|x| self.block.forward(x, cx))]
struct Method {
    #[layer(Block::builder().build()?)]
    block: Block,
}

#[derive(Module)]
struct InOrder {
    #[layer(Block::builder().build()?)]
    block: Block,
}

fn main() {}
