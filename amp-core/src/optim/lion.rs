//! Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", Algorithm 2).

use serde_json::{Map, Value};
use tch::Kind;

use super::{Algorithm, Rates, Slot, StepTensors, algorithm, require, require_betas};
use crate::{
    Result,
    ffi::{self, LionStep},
    parameter::Parameter,
};

/// Lion adds lr to each weight or subtracts lr from it. The sign is determined by an interpolation
/// between the gradient and its running average. The defaults are those of the paper. Choose lr 3
/// to 10 times smaller than for AdamW, and the weight decay larger by the same factor. On CUDA one
/// kernel of this crate computes the whole step; see [`AdamW::fused`](super::AdamW::fused).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Lion {
    /// The learning rate.
    pub lr: f64,
    /// β₁ is the weight of the gradient's running average in the interpolation. β₂ is the decay
    /// rate of this average.
    pub betas: (f64, f64),
    /// The weight decay: each step subtracts lr·weight_decay·weight from the weight.
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Self { lr: 1e-4, betas: (0.9, 0.99), weight_decay: 0.0 }
    }
}

impl Algorithm for Lion {
    const NAME: &'static str = "Lion";
    const ELEMENTWISE: bool = true;

    fn upcasts(kind: Kind) -> Option<&'static str> {
        (kind == Kind::Half).then_some("small gradients would not change a float16 running average")
    }

    fn check(&self) -> Result<()> {
        require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
        require_betas(self.betas)?;
        require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "at least 0")
    }

    fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
        Ok(vec![Slot::like_parameter("exp_avg")])
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: Some(self.betas.0) }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
        self.betas.0 = rates.momentum.unwrap_or(self.betas.0);
    }

    fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
        let Self { lr, betas: (beta1, beta2), weight_decay } = *self;
        let [exp_avgs] = tensors.states else {
            unreachable!("Lion has one slot");
        };
        let options = LionStep { lr, beta1, beta2, weight_decay };
        let lists = [tensors.params, tensors.grads, exp_avgs];
        ffi::lion(lists, &options, tensors.kernels(false))
    }

    fn captures(&self) -> bool {
        true
    }

    fn fields(&self) -> Option<Map<String, Value>> {
        algorithm::fields(self)
    }
}
