//! A role is one of five words.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    #[batch(idx)]
    ids: Tensor,
    #[batch(mask, shared)]
    mask: Tensor,
}

fn main() {}
