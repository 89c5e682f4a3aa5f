//! For a misspelt role of a batch's field, the error suggests the right one.

use amp_core::prelude::*;

#[derive(Batch)]
struct Tokens {
    #[batch(idx)]
    ids: Tensor,
    #[batch(mask, shared)]
    mask: Tensor,
}

fn main() {}
