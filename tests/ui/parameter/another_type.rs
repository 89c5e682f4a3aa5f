//! rustc reports an initial value that is not a tensor.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x| Ok(x.f_add(&self.shift)?))]
struct Net {
    #[parameter(init = 3.0)]
    shift: Tensor,
}

fn main() {}
