//! A union has no fields of its own.

use amp_core::prelude::*;

#[derive(Module)]
union Net {
    small: std::mem::ManuallyDrop<Linear>,
}

fn main() {}
