//! A union is refused.

use amp_core::prelude::*;

#[derive(Module)]
union Net {
    small: std::mem::ManuallyDrop<Linear>,
}

fn main() {}
