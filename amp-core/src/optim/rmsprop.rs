//! RMSprop (torch/optim/rmsprop.py).

use serde_json::{Map, Value};
use tch::Kind;

use super::{
    Algorithm, Rates, Slot, StepTensors,
    algorithm::{self, kept},
    require,
};
use crate::{
    Result,
    ffi::{self, RmspropStep},
    parameter::Parameter,
};

/// RMSprop divides the gradient by the square root of the running mean of the squared gradient. The
/// defaults are those of torch.optim.RMSprop. On CUDA one kernel of this crate computes the whole
/// step; see [`AdamW::fused`](super::AdamW::fused).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct RmsProp {
    /// The learning rate.
    pub lr: f64,
    /// The decay rate of the running average of squared gradients.
    pub alpha: f64,
    /// The number that is added to the square root of the running average of squared gradients.
    pub eps: f64,
    /// The weight decay: weight_decay·weight is added to the gradient.
    pub weight_decay: f64,
    /// The factor by which each step multiplies the running sum of updates. 0 means no momentum.
    pub momentum: f64,
    /// Whether gradients are divided by their standard deviation: the squared running mean of the
    /// gradient is subtracted from the running average of squared gradients.
    pub centered: bool,
}

impl Default for RmsProp {
    fn default() -> Self {
        Self { lr: 1e-2, alpha: 0.99, eps: 1e-8, weight_decay: 0.0, momentum: 0.0, centered: false }
    }
}

impl Algorithm for RmsProp {
    const NAME: &'static str = "RMSprop";
    const ELEMENTWISE: bool = true;

    fn upcasts(kind: Kind) -> Option<&'static str> {
        (kind == Kind::Half).then_some("float16 cannot represent the square of a small gradient")
    }

    fn check(&self) -> Result<()> {
        for (name, value) in [
            ("lr", self.lr),
            ("eps", self.eps),
            ("momentum", self.momentum),
            ("weight_decay", self.weight_decay),
        ] {
            require(value >= 0.0, name, value, "at least 0")?;
        }
        require((0.0..=1.0).contains(&self.alpha), "alpha", self.alpha, "in [0, 1]")
    }

    fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
        let momentum = (self.momentum > 0.0).then_some("momentum_buffer");
        let centered = self.centered.then_some("grad_avg");
        let signed = [momentum, centered].into_iter().flatten().map(Slot::like_parameter);
        Ok(std::iter::once(Slot::of_squares("square_avg")).chain(signed).collect())
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: (self.momentum > 0.0).then_some(self.momentum) }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
        self.momentum = rates.momentum.unwrap_or(self.momentum);
    }

    fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
        let Self { lr, alpha, eps, weight_decay, momentum, centered } = *self;
        let options =
            RmspropStep { lr, alpha, eps, weight_decay, momentum, centered: centered.into() };
        let [square_avgs, others @ ..] = tensors.states else {
            unreachable!("RMSprop has a slot");
        };
        let (buffers, grad_avgs) = match others.split_last() {
            Some((grad_avgs, buffers)) if centered => (buffers.first(), Some(grad_avgs)),
            _ => (others.first(), None),
        };
        let StepTensors { params, grads, .. } = *tensors;
        let lists = [params, grads, square_avgs, kept(buffers), kept(grad_avgs)];
        ffi::rmsprop(lists, &options, tensors.kernels(false))
    }

    fn captures(&self) -> bool {
        true
    }

    fn fields(&self) -> Option<Map<String, Value>> {
        algorithm::fields(self)
    }
}
