//! An update rule cannot capture the options: they would be constants of a CUDA graph.

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
        tensors.each(self, |_, one| {
            let update = one.grad().f_mul_scalar(-self.lr)?;
            one.param().shallow_clone().f_add_(&update)?;
            Ok(())
        })
    }
}

fn main() {}
