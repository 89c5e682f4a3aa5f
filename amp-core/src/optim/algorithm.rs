//! What makes an optimizer: its options, what it keeps for a parameter, and its rule for a step.

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::{Abilities, Moments, Rates, Slot, StepTensors, weight_update::is_half};
use crate::{Result, parameter::Parameter};

/// An optimizer's options with its rule for one step. The options are a
/// [`BuildOptimizer`](super::BuildOptimizer) by that: parameter groups ([`ParamGroups`](super::ParamGroups)), schedules,
/// saved state, 16-bit weights stepped in f32 or in masters, reduced moments, and steps that are skipped on overflow come
/// with it.
///
/// A rule of tensor operations needs nothing else:
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
///         true // the rule below reads its rates from `one`, and no tensor's value on the host
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
    /// Under which its state is saved: PyTorch's name where PyTorch has it.
    const NAME: &'static str;

    /// Whether the rule treats each element by itself. A parameter that is stepped in copies of another dtype is given to
    /// such a rule in flat pieces, which bounds the copies' memory, and to others as a whole.
    const ELEMENTWISE: bool = false;

    /// Why a dtype is stepped in f32 with its state in f32, whatever the user chose; `None` where
    /// [`step`](Self::step) can take it as it is. By default, 16-bit dtypes are.
    fn widens(kind: Kind) -> Option<&'static str> {
        is_half(kind).then_some("each operation of its rule would round to 16 bits")
    }

    /// Refuses options out of range, in [`require`](super::require)'s words.
    ///
    /// # Errors
    /// Names the option and its range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What is kept for a parameter, by PyTorch's names.
    ///
    /// # Errors
    /// When the rule cannot step such a parameter.
    fn slots(&self, parameter: &Parameter) -> Result<Vec<Slot>>;

    /// The current rates.
    fn rates(&self) -> Rates;

    /// Sets the rates.
    fn set_rates(&mut self, rates: Rates);

    /// Steps parameters of one dtype: [`StepTensors::each`] for a rule of tensor operations.
    ///
    /// # Errors
    /// When an operation fails.
    fn step(&self, tensors: &StepTensors<'_>) -> Result<()>;

    /// Whether the first step of a parameter follows another rule
    /// ([`ParameterStep::is_first`](super::ParameterStep::is_first)). A CUDA graph holds the step after it.
    fn first_step_differs(&self) -> bool {
        false
    }

    /// Whether a step on CUDA can be part of a CUDA graph: it must read its rates from
    /// [`ParameterStep`](super::ParameterStep), no tensor's value on the host, and do the same whatever the values are.
    /// Where this is true, the options that [`StepTensors::each`] hands to the rule have rates of NaN on CUDA, so that a
    /// rate which would be captured as a constant shows itself.
    fn captures(&self) -> bool {
        false
    }

    /// What [`step`](Self::step) can take on this device. By default all that [`StepTensors::each`] can where the
    /// rule [can be captured](Self::captures). Otherwise nothing: a step behind a CUDA graph gets gradients that are
    /// unscaled and clipped, as a step without a graph does.
    fn abilities(&self, device: Device) -> Abilities {
        Abilities::all(device.is_cuda() && self.captures())
    }

    /// Whether [`step`](Self::step) takes running averages as they are kept for parameters of this
    /// dtype, rather than in f32 for the time of the step.
    fn takes(&self, moments: Moments, kind: Kind, device: Device) -> bool {
        let _ = (kind, device);
        moments == Moments::Full
    }

    /// The options by the names of their fields, by which checks of a run recompute its steps; nothing where they are not
    /// said.
    fn fields(&self) -> Option<Map<String, Value>> {
        None
    }
}

/// The methods of options that serde can name, whose step is their `rule` for each parameter, which a CUDA graph can hold.
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

/// The fields of options that serde can name.
pub(super) fn fields(options: &impl serde::Serialize) -> Option<Map<String, Value>> {
    serde_json::to_value(options).ok()?.as_object().cloned()
}

/// A slot's tensors; none where the options want no such slot.
pub(super) fn kept<'s, 't>(slot: Option<&'s Vec<&'t Tensor>>) -> &'s [&'t Tensor] {
    slot.map(Vec::as_slice).unwrap_or_default()
}
