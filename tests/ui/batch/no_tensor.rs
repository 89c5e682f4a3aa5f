//! A string is not a tensor.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    ids: Tensor,
    text: String,
}

fn main() {}
