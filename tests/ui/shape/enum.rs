//! An enum is refused, because only structs have fields for layers.

use amp_core::prelude::*;

#[derive(LightningModule)]
enum Net {
    Small(Linear),
    Large(Sequential),
}

fn main() {}
