//! rustc reports a key that is not a field of the user's optimizer.

use amp_core::{
    nn::Parameter,
    optim::{Algorithm, Rates, Slot, StepTensors},
    prelude::*,
};

#[derive(Debug, Clone, Default)]
struct Signum {
    lr: f64,
}

impl Algorithm for Signum {
    const NAME: &'static str = "Signum";

    fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
        Ok(Vec::new())
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: None }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
    }

    fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
        tensors.each(self, |_, one| one.lr().times(-1.0)?.add(one.param(), one.grad()))
    }
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(Signum, rate = 0.1)]
struct Net {
    #[layer(linear(4, 1))]
    model: Linear,
}

fn main() {}
