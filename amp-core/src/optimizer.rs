//! What steps parameters: the interface that the scaler and the trainer know of an optimizer.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::Tensor;

use crate::{Result, ffi, parameter::Parameter, state::State};

/// What a schedule sets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Momentum, or Adam's first beta; `None` where the optimizer has none.
    pub momentum: Option<f64>,
}

/// Numbers on the parameters' device that a step depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnDevice<'a> {
    /// Where it, an f32 scalar, is not 0, nothing moves.
    pub found_inf: Option<&'a Tensor>,
    /// What every gradient is multiplied by first: a scalar.
    pub factor: Option<&'a Tensor>,
}

/// What an optimizer's steps can do on the device, without the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Be left out: [`OnDevice::found_inf`].
    pub skips: bool,
    /// Multiply the gradients: [`OnDevice::factor`]. A step behind a CUDA graph is given none: its gradients are
    /// unscaled and clipped within the graph.
    pub scales: bool,
    /// Be part of a CUDA graph: a step reads its rates from the device, where
    /// [`Optimizer::write_rates`] writes them.
    pub captures: bool,
}

impl Abilities {
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

/// An optimizer with its parameters and state.
pub trait Optimizer {
    /// PyTorch's name, as `AdamW`.
    fn name(&self) -> &'static str;

    /// The parameters, in order of declaration; gradients on their way to a step share them.
    fn parameters(&self) -> &Rc<[Parameter]>;

    /// Moves every parameter that has a gradient.
    ///
    /// # Errors
    /// When the kernel fails.
    fn step(&mut self) -> Result<()> {
        self.step_with(OnDevice::default())
    }

    /// [`step`](Self::step) with numbers that the device alone knows.
    ///
    /// # Errors
    /// When [`abilities`](Self::abilities) has one of them not, or the kernel fails.
    fn step_with(&mut self, known: OnDevice<'_>) -> Result<()>;

    /// What [`step_with`](Self::step_with) can take.
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }

    /// Brings the current rates to the device, for steps that were captured.
    ///
    /// # Errors
    /// When the kernel fails.
    fn write_rates(&mut self) -> Result<()> {
        Ok(())
    }

    /// The current rates of each parameter group; there is at least one.
    fn rates(&self) -> Vec<Rates>;

    /// The options that hold for the parameter at this place of [`parameters`](Self::parameters), by the
    /// names of their fields, with the current rates; nothing where the optimizer does not say.
    fn options(&self, place: usize) -> Option<Map<String, Value>> {
        let _ = place;
        None
    }

    /// Sets the rates of the next step, group by group.
    fn set_rates(&mut self, rates: &[Rates]);

    /// Makes the state of parameters that require gradients and have none yet. The trainer calls it when it
    /// unfreezes parameters. An optimizer keeps no state for parameters that require no gradient.
    ///
    /// # Errors
    /// When the device has no room.
    fn extend_state(&mut self) -> Result<()> {
        Ok(())
    }

    /// What a checkpoint needs: PyTorch's state by its names, then the parameter's
    /// (`exp_avg/model.0.weight`), and the rates of each group. Tensors are handles: save them
    /// before the next step.
    ///
    /// # Errors
    /// When a rate is not finite.
    fn state(&self) -> Result<State>;

    /// Goes on from a saved state, which may have been saved on another device.
    ///
    /// # Errors
    /// When a name, shape or dtype is another than this optimizer would save. Nothing is
    /// changed then.
    fn load_state(&mut self, state: &State) -> Result<()>;

    /// The options of each group but the rates, as a text that differs where they do: a run that is resumed
    /// has the saved run's. Nothing is compared where it is empty.
    fn fixed_options(&self) -> String {
        String::new()
    }

    /// What was changed of the options for the parameters' dtype, to be shown to the user.
    fn note(&self) -> Option<String> {
        None
    }

    /// Drops all gradients (PyTorch's `set_to_none=True`).
    ///
    /// # Errors
    /// When libtorch does.
    fn zero_grad(&mut self) -> Result<()> {
        ffi::clear_grads(self.parameters().iter().map(|parameter| &parameter.tensor))
    }
}
