//! rustc reports a user's function whose signature does not fit the generated call.

use amp_core::prelude::*;

#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-3)]
#[training_step(Self::step)]
struct Net {
    #[layer(linear(64, 10))]
    model: Linear,
}

impl Net {
    fn step(&mut self, _: &Batch) -> Result<Tensor> {
        unimplemented!()
    }
}

fn main() {}
