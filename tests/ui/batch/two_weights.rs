//! An example has one weight.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    #[batch(weights)]
    a: Tensor,
    #[batch(weights)]
    b: Option<Tensor>,
}

fn main() {}
