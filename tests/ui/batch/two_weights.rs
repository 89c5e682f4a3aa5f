//! Two fields of a batch with weights of examples are refused, because each example has one weight.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    #[batch(weights)]
    a: Tensor,
    #[batch(weights)]
    b: Option<Tensor>,
}

fn main() {}
