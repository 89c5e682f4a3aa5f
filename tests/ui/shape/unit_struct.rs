//! No fields, so no layers.

use amp_core::prelude::*;

#[derive(Module)]
struct Net;

fn main() {}
