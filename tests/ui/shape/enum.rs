//! Only structs have fields to be layers.

use amp_core::prelude::*;

#[derive(LightningModule)]
enum Net {
    Small(Linear),
    Large(Sequential),
}

fn main() {}
