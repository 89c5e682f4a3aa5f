//! A struct without fields is refused, because it has no layers.

use amp_core::prelude::*;

#[derive(Module)]
struct Net;

fn main() {}
