//! A field of a batch with the type `String` is refused, because it holds no tensor.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    ids: Tensor,
    text: String,
}

fn main() {}
