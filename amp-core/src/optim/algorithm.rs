//! The trait that every optimizer implements: its options, its state for a parameter, and the
//! formula of its step.

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::{Capabilities, Moments, Rates, Slot, StepTensors, weight_update::is_half};
use crate::{Result, parameter::Parameter};

/// The options of an optimizer, and the rule (formula) by which one step updates the parameters.
/// Every type with this trait is also a [`BuildOptimizer`](super::BuildOptimizer). Such an
/// optimizer supports parameter groups ([`ParamGroups`](super::ParamGroups)), schedules and
/// checkpoints. It can update 16-bit weights through f32 copies or f32 master weights, and store
/// its running averages in 16 or 8 bits. A step whose gradients are not finite is skipped.
///
/// If the rule consists of tensor operations, an optimizer needs no more than this:
///
/// ```
/// use amp_core::{Result, nn::Parameter, optim::{Algorithm, Rates, Slot, StepTensors, require}};
///
/// /// Sign descent with momentum: m ← β·m + (1 − β)·g, then w ← w − lr·sign(m).
/// #[derive(Debug, Clone)]
/// struct Signum {
///     lr: f64,
///     momentum: f64,
/// }
///
/// impl Algorithm for Signum {
///     const NAME: &'static str = "Signum";
///     const ELEMENTWISE: bool = true;
///
///     fn check(&self) -> Result<()> {
///         require(self.lr >= 0.0, "lr", self.lr, "at least 0")?;
///         require((0.0..1.0).contains(&self.momentum), "momentum", self.momentum, "in [0, 1)")
///     }
///
///     fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
///         Ok(vec![Slot::like_parameter("momentum_buffer")])
///     }
///
///     fn rates(&self) -> Rates {
///         Rates { lr: self.lr, momentum: Some(self.momentum) }
///     }
///
///     fn set_rates(&mut self, rates: Rates) {
///         (self.lr, self.momentum) = (rates.lr, rates.momentum.unwrap_or(self.momentum));
///     }
///
///     fn captures(&self) -> bool {
///         true // the rule below gets its rates from `one`, and reads no tensor on the host
///     }
///
///     fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
///         tensors.each(self, |_, one| {
///             let m = one.slot("momentum_buffer")?;
///             one.momentum().times(-1.0)?.plus(1.0)?.lerp(m, one.grad())?;
///             one.lr().times(-1.0)?.add(one.param(), &m.f_sign()?)
///         })
///     }
/// }
/// ```
pub trait Algorithm: Clone + std::fmt::Debug + 'static {
    /// The name of the optimizer in saved states. It is PyTorch's name if PyTorch has the
    /// optimizer.
    const NAME: &'static str;

    /// Whether the rule computes each element independently of the others. If so, and if a step
    /// updates f32 copies of the parameters, the rule gets a parameter in flat pieces, whose copies
    /// need little memory. Any other rule gets the whole parameter.
    const ELEMENTWISE: bool = false;

    /// Returns the reason why parameters of the dtype `kind` are always updated in f32 and with f32
    /// state. Returns `None` if [`step`](Self::step) supports the dtype. By default only 16-bit
    /// dtypes have such a reason.
    fn upcasts(kind: Kind) -> Option<&'static str> {
        is_half(kind).then_some("each operation of the update would round its result to 16 bits")
    }

    /// Checks that every option is in its range, by calls of [`require`](super::require).
    ///
    /// # Errors
    /// When an option is out of range. The message names the option and its range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Declares the state tensors (slots) of a parameter. Use PyTorch's names for them.
    ///
    /// # Errors
    /// When the rule cannot update this parameter.
    fn slots(&self, parameter: &Parameter) -> Result<Vec<Slot>>;

    /// Returns the current learning rate and momentum.
    fn rates(&self) -> Rates;

    /// Sets the learning rate and momentum.
    fn set_rates(&mut self, rates: Rates);

    /// Updates several parameters of the same dtype. A rule of tensor operations is implemented
    /// with a call of [`StepTensors::each`].
    ///
    /// # Errors
    /// When an operation of the step fails.
    fn step(&self, tensors: &StepTensors<'_>) -> Result<()>;

    /// Returns whether the rule treats the first step of a parameter differently
    /// ([`ParameterStep::is_first`](super::ParameterStep::is_first)). If so, only the later steps
    /// can be captured in a CUDA graph.
    fn first_step_differs(&self) -> bool {
        false
    }

    /// Returns whether a step on CUDA can be captured in a CUDA graph. If it can, the rule must
    /// read its rates from [`ParameterStep`](super::ParameterStep), must not read a tensor's value
    /// on the host, and must run the same operations whatever values the tensors have. On CUDA,
    /// [`StepTensors::each`] replaces the rates in the options by NaN. A rule that wrongly reads a
    /// rate from the options then computes NaN, whereas a graph would silently capture the rate as
    /// a constant.
    fn captures(&self) -> bool {
        false
    }

    /// Returns what [`step`](Self::step) supports on this device besides the update: skipping the
    /// step, scaling the gradients, and being captured in a CUDA graph. By default this is
    /// everything if the device is CUDA and the rule [can be captured](Self::captures), and
    /// otherwise nothing. If a step cannot scale the gradients, the trainer unscales and clips them
    /// before the step.
    fn capabilities(&self, device: Device) -> Capabilities {
        Capabilities::all(device.is_cuda() && self.captures())
    }

    /// Returns whether [`step`](Self::step) can read and write running averages in the storage
    /// format `moments`, for parameters of the dtype `kind`. If not, the averages are converted to
    /// f32 for the step.
    fn takes(&self, moments: Moments, kind: Kind, device: Device) -> bool {
        let _ = (kind, device);
        moments == Moments::Full
    }

    /// Returns the values of the options by field name. To check a run, `amp-verify` repeats its
    /// optimizer steps with these values. Returns `None` if the values are not available.
    fn fields(&self) -> Option<Map<String, Value>> {
        None
    }
}

/// Implements `captures`, `step` and `fields` of [`Algorithm`] for an optimizer that has a method
/// `rule` and implements serde's `Serialize`. The step calls `rule` for each parameter, and can be
/// captured in a CUDA graph.
macro_rules! stepped_by_rule {
    () => {
        fn captures(&self) -> bool {
            true
        }

        fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
            tensors.each(self, Self::rule)
        }

        fn fields(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
            super::algorithm::fields(self)
        }
    };
}
pub(super) use stepped_by_rule;

/// Returns the options by field name, for a type that implements serde's `Serialize`.
pub(super) fn fields(options: &impl serde::Serialize) -> Option<Map<String, Value>> {
    serde_json::to_value(options).ok()?.as_object().cloned()
}

/// Returns the state tensors of a slot, one for each parameter. The result is empty if the options
/// do not use the slot.
pub(super) fn kept<'s, 't>(slot: Option<&'s Vec<&'t Tensor>>) -> &'s [&'t Tensor] {
    slot.map(Vec::as_slice).unwrap_or_default()
}
