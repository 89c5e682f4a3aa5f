//! Missing or wrong initial values, and initial values without a shape, are refused.

use amp_core::prelude::*;

#[derive(Module)]
#[forward(|x| Ok(x.f_add(&self.a)?.f_add(&self.b)?.f_add(&self.c)?.f_add(&self.d)?))]
struct Net {
    #[parameter]
    a: Tensor,
    #[parameter(shape = [3], init = normall(0.0, 0.02))]
    b: Tensor,
    #[parameter(init = zeros)]
    c: Tensor,
    #[buffer(shape = [3], init = uniform(1.0))]
    d: Tensor,
}

fn main() {}
