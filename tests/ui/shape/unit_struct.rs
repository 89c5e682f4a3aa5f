//! A module without layers is refused if it has no `#[forward]`.

use amp_core::prelude::*;

#[derive(Module)]
struct Net;

fn main() {}
