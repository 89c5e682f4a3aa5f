//! SGD with momentum (torch/optim/sgd.py).

use serde_json::{Map, Value};
use tch::{Device, Kind};

use super::{
    Algorithm, Capabilities, Rates, Slot, StepTensors,
    algorithm::{self, kept},
    require,
    weight_update::is_half,
};
use crate::{
    Result,
    ffi::{self, SgdStep},
    parameter::Parameter,
};

/// Stochastic gradient descent. The defaults are those of torch.optim.SGD.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Sgd {
    /// The learning rate.
    pub lr: f64,
    /// The factor by which each step multiplies the running sum of gradients. 0 means no momentum.
    pub momentum: f64,
    /// The fraction of a new gradient that is not added to the running sum.
    pub dampening: f64,
    /// The weight decay: weight_decay·weight is added to the gradient.
    pub weight_decay: f64,
    /// Whether the step uses Nesterov momentum.
    pub nesterov: bool,
    /// Whether one kernel computes the whole step, as in [`AdamW::fused`](super::AdamW::fused).
    /// With dampening, a step can be captured in a CUDA graph only after every parameter has been
    /// updated once.
    pub fused: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
            fused: true,
        }
    }
}

impl Algorithm for Sgd {
    const NAME: &'static str = "SGD";
    const ELEMENTWISE: bool = true;

    /// Returns the reason why 16-bit parameters are updated in f32; `None` for other dtypes. On the
    /// CPU, libtorch's 16-bit kernels, which PyTorch's `SGD(fused=True)` uses too, lose the
    /// momentum, so that a bf16 model does not learn.
    fn upcasts(kind: Kind) -> Option<&'static str> {
        is_half(kind).then_some("libtorch's 16-bit kernels lose the momentum on the CPU")
    }

    fn check(&self) -> Result<()> {
        require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
        require(self.momentum >= 0.0, "momentum", self.momentum, "at least 0")?;
        require(self.weight_decay >= 0.0, "weight_decay", self.weight_decay, "at least 0")?;
        if self.nesterov {
            let momentum = self.momentum;
            require(momentum > 0.0, "momentum", momentum, "positive with nesterov")?;
            require(self.dampening == 0.0, "dampening", self.dampening, "0 with nesterov")?;
        }
        Ok(())
    }

    fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
        let slot = (self.momentum != 0.0).then(|| Slot::like_parameter("momentum_buffer"));
        Ok(slot.into_iter().collect())
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: (self.momentum > 0.0).then_some(self.momentum) }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
        self.momentum = rates.momentum.unwrap_or(self.momentum);
    }

    fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
        let Self { lr, momentum, dampening, weight_decay, nesterov, fused } = *self;
        let (nesterov, first_step) = (nesterov.into(), tensors.first.into());
        let options = SgdStep { lr, momentum, dampening, weight_decay, nesterov, first_step };
        let lists = [tensors.params, tensors.grads, kept(tensors.states.first())];
        ffi::sgd(lists, &options, tensors.kernels(fused))
    }

    /// Returns whether the first step differs from the later steps. It does if there is dampening,
    /// because the first gradient enters the momentum buffer without dampening.
    fn first_step_differs(&self) -> bool {
        self.dampening != 0.0
    }

    fn capabilities(&self, device: Device) -> Capabilities {
        Capabilities { skips: self.fused, ..Capabilities::all(self.fused && device.is_cuda()) }
    }

    fn fields(&self) -> Option<Map<String, Value>> {
        algorithm::fields(self)
    }
}
