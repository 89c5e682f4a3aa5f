//! The interface through which the scaler and the trainer use an optimizer.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::Tensor;

use crate::{Result, ffi, parameter::Parameter, state::State};

/// The settings of an optimizer that a learning-rate schedule changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// The learning rate.
    pub lr: f64,
    /// The momentum, or Adam's first beta. `None` if the optimizer has neither of the two.
    pub momentum: Option<f64>,
}

/// Tensors that an optimizer step reads on the device, so that the host need not wait for their
/// values.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnDevice<'a> {
    /// An f32 scalar. If its value is not 0, the step changes nothing.
    pub found_inf: Option<&'a Tensor>,
    /// A scalar by which the step multiplies every gradient first.
    pub factor: Option<&'a Tensor>,
}

/// The operations that an optimizer's step supports on the device, without waiting for the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether the step can skip itself if [`OnDevice::found_inf`] is not 0.
    pub skips: bool,
    /// Whether the step can multiply the gradients by [`OnDevice::factor`]. If the step cannot be
    /// captured in a CUDA graph, it runs after the graph of the forward and backward pass, and gets
    /// no factor, because that graph has already unscaled and clipped the gradients.
    pub scales: bool,
    /// Whether the step can be captured in a CUDA graph. A captured step reads the learning rate
    /// and the momentum from the device, where [`Optimizer::write_rates`] writes them.
    pub captures: bool,
}

impl Capabilities {
    pub(crate) fn all(are: bool) -> Self {
        Self { skips: are, scales: are, captures: are }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            skips: self.skips && other.skips,
            scales: self.scales && other.scales,
            captures: self.captures && other.captures,
        }
    }
}

/// An optimizer with the parameters that it updates, and its state.
pub trait Optimizer {
    /// Returns the name that the optimizer has in PyTorch, such as `AdamW`.
    fn name(&self) -> &'static str;

    /// Returns the parameters, in the order in which the model declares them.
    /// [`Gradients`](crate::precision::Gradients) have the same order, because they share this
    /// list.
    fn parameters(&self) -> &Rc<[Parameter]>;

    /// Updates every parameter that has a gradient.
    ///
    /// # Errors
    /// When the kernel of the update fails.
    fn step(&mut self) -> Result<()> {
        self.step_with(OnDevice::default())
    }

    /// Updates every parameter that has a gradient, as [`step`](Self::step) does. `known` contains
    /// tensors that the step reads on the device: whether to skip the step, and a factor for the
    /// gradients.
    ///
    /// # Errors
    /// When [`capabilities`](Self::capabilities) lacks an operation that `known` needs, or the
    /// kernel fails.
    fn step_with(&mut self, known: OnDevice<'_>) -> Result<()>;

    /// Returns the operations that [`step_with`](Self::step_with) supports on the device.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Writes the current learning rates and momenta to the device, for steps in CUDA graphs.
    ///
    /// # Errors
    /// When writing to the device fails.
    fn write_rates(&mut self) -> Result<()> {
        Ok(())
    }

    /// Returns the current learning rate and momentum of each parameter group. An optimizer has at
    /// least one group.
    fn rates(&self) -> Vec<Rates>;

    /// Returns the options of the parameter with the index `place` in
    /// [`parameters`](Self::parameters), by field name, with the current rates. Returns `None` if
    /// the optimizer does not provide options.
    fn options(&self, place: usize) -> Option<Map<String, Value>> {
        let _ = place;
        None
    }

    /// Sets the learning rate and momentum for the next step, one pair for each parameter group.
    fn set_rates(&mut self, rates: &[Rates]);

    /// Creates the optimizer state of parameters that require gradients and have no state yet. The
    /// trainer calls this method when it unfreezes parameters, because an optimizer keeps no state
    /// for frozen parameters.
    ///
    /// # Errors
    /// When there is not enough device memory.
    fn extend_state(&mut self) -> Result<()> {
        Ok(())
    }

    /// Undoes [`extend_state`](Self::extend_state): drops the state of parameters that do not
    /// require gradients and have not been updated yet. The trainer calls both methods to measure,
    /// before the first step, how much memory a step needs after parameters are unfrozen.
    fn drop_unused_state(&mut self) {}

    /// Returns the state for a checkpoint: the learning rate and momentum of each group, and
    /// tensors. The name of a tensor is PyTorch's key followed by the parameter's name, as in
    /// `exp_avg/model.0.weight`. The tensors share memory with the optimizer, so save them before
    /// the next step changes them.
    ///
    /// # Errors
    /// When a rate is not finite.
    fn state(&self) -> Result<State>;

    /// Restores a saved state, which may come from another device.
    ///
    /// # Errors
    /// When a name, shape or dtype differs from this optimizer's state. After an error the state is
    /// unchanged.
    fn load_state(&mut self, state: &State) -> Result<()>;

    /// Returns the options of each group, except the learning rate and momentum, as a text. Equal
    /// options give equal texts. A resumed run must have the same options as the saved run. If the
    /// text is empty, the options are not compared.
    fn fixed_options(&self) -> String {
        String::new()
    }

    /// Returns a note for the user if the optimizer changed some of its options because of the
    /// parameters' dtype, or if an option has no effect.
    fn note(&self) -> Option<String> {
        None
    }

    /// Drops the gradients of all parameters (PyTorch's `zero_grad(set_to_none=True)`).
    ///
    /// # Errors
    /// When libtorch cannot drop a gradient.
    fn zero_grad(&mut self) -> Result<()> {
        ffi::clear_grads(self.parameters().iter().map(|parameter| &parameter.tensor))
    }
}
