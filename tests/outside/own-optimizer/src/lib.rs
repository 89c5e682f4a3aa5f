//! An optimizer that you write yourself. The README of this crate explains it.

use amp_core::{
    Result,
    nn::Parameter,
    optim::{Algorithm, Rates, Slot, StepTensors, require},
};

/// Sign descent with momentum (Signum; Bernstein et al., 2018): m ← β·m + (1 − β)·g, then
/// w ← w − lr·sign(m).
#[derive(Debug, Clone, PartialEq)]
pub struct Signum {
    /// Learning rate: by how much each weight changes in a step.
    pub lr: f64,
    /// β, the weight of the old m in a step.
    pub momentum: f64,
}

impl Default for Signum {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.9 }
    }
}

impl Algorithm for Signum {
    const NAME: &'static str = "Signum";
    const ELEMENTWISE: bool = true;

    fn check(&self) -> Result<()> {
        require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
        require((0.0..1.0).contains(&self.momentum), "momentum", self.momentum, "in [0, 1)")
    }

    fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
        Ok(vec![Slot::like_parameter("momentum_buffer")])
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: Some(self.momentum) }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
        self.momentum = rates.momentum.unwrap_or(self.momentum);
    }

    fn captures(&self) -> bool {
        true
    }

    fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
        tensors.each(self, |_, one| {
            let m = one.slot("momentum_buffer")?;
            one.momentum().times(-1.0)?.plus(1.0)?.lerp(m, one.grad())?;
            one.lr().times(-1.0)?.add(one.param(), &m.f_sign()?)
        })
    }
}

/// `cargo test` compiles and runs the README's Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Page;
