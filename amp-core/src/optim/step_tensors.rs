//! The tensors that an optimizer reads and writes in one step.

use tch::Tensor;

use super::{Algorithm, Number, OnDevice, Rates, Slot, state::Code};
use crate::{
    Error, Result,
    ffi::{DeviceValues, Kernels},
    precision::AutocastGuard,
};

/// The parameters that one call of a rule updates, with their gradients and state.
#[derive(Debug)]
pub struct StepTensors<'a> {
    pub(super) params: &'a [&'a Tensor],
    pub(super) grads: &'a [&'a Tensor],
    pub(super) slots: &'a [Slot],
    /// The state tensors: one list for each slot, with one tensor for each parameter. For an 8-bit
    /// average, this is the tensor of codes.
    pub(super) states: &'a [Vec<&'a Tensor>],
    /// The scales of the 8-bit averages: one list for each slot that is stored in 8 bits, in the
    /// order of the slots.
    pub(super) scales: &'a [Vec<&'a Tensor>],
    /// The numbers that the 8-bit codes stand for, in the same order as `scales`.
    pub(super) codes: &'a [&'a Code],
    /// Whether this is the first update of these parameters. Either all parameters have been
    /// updated before, or none.
    pub(super) first: bool,
    /// Values that the step reads on the device: the factor by which the gradients are multiplied,
    /// and whether the step is skipped. A field is `None` if there is no such value.
    pub(super) known: OnDevice<'a>,
    /// The learning rate and momentum on the device, where a captured step reads them. `None` if
    /// the step cannot be captured.
    pub(super) rates: Option<&'a Tensor>,
}

impl StepTensors<'_> {
    /// Returns the kernels that compute the step: this crate's kernels if the step can be captured
    /// in a CUDA graph, and otherwise libtorch's. Of libtorch's kernels, a single one computes the
    /// whole step if `fused` is true.
    pub(super) fn kernels(&self, fused: bool) -> Kernels<'_> {
        let OnDevice { factor, found_inf } = self.known;
        match self.rates {
            Some(rates) => Kernels::Ours(DeviceValues::new(rates, factor, found_inf)),
            None if fused => Kernels::Fused(found_inf),
            None => Kernels::Foreach,
        }
    }

    /// Calls `rule` for each parameter. The rule consists of tensor operations, and runs without
    /// autograd and autocast. The gradients that it gets are unscaled and clipped. If
    /// [`OnDevice::found_inf`] is not 0, the changes that the rule made are undone on the device.
    ///
    /// The rule is a function, or a closure that captures nothing. It gets the options as an
    /// argument.
    ///
    /// # Errors
    /// When the rule fails.
    pub fn each<A: Algorithm>(
        &self,
        options: &A,
        rule: fn(&A, &ParameterStep<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(like) = self.params.first() else {
            return Ok(());
        };
        // In a caller's autocast region, the rule's matrix products would be computed in 16 bits.
        let _autocast = AutocastGuard::off(like.device())?;
        let rates = options.rates();
        let mut options = options.clone();
        if self.rates.is_some() {
            let momentum = rates.momentum.map(|_| f64::NAN);
            options.set_rates(Rates { lr: f64::NAN, momentum });
        }
        tch::no_grad(|| {
            let mut places = (0..self.params.len()).filter(|at| self.params[*at].numel() > 0);
            places.try_for_each(|at| self.one(&options, rates, at, rule))
        })
    }

    fn one<A: Algorithm>(
        &self,
        options: &A,
        rates: Rates,
        at: usize,
        rule: fn(&A, &ParameterStep<'_>) -> Result<()>,
    ) -> Result<()> {
        let param = self.params[at];
        let mut grad = self.grads[at].f_to_kind(param.kind())?;
        if let Some(factor) = self.known.factor {
            grad = grad.f_mul(&factor.f_to_kind(param.kind())?)?;
        }
        let states: Vec<&Tensor> = self.states.iter().map(|slot| slot[at]).collect();
        let written = || std::iter::once(param).chain(states.iter().copied());
        let before = match self.known.found_inf {
            None => Vec::new(),
            Some(_) => {
                written().map(Tensor::f_detach_copy).collect::<std::result::Result<_, _>>()?
            }
        };
        let (first, on_device) = (self.first, self.rates);
        rule(
            options,
            &ParameterStep {
                param,
                grad,
                slots: self.slots,
                states: &states,
                first,
                rates,
                on_device,
            },
        )?;
        if let Some(found_inf) = self.known.found_inf {
            let skipped = found_inf.f_ne(0.0)?;
            for (tensor, before) in written().zip(&before) {
                let kept = before.f_where_self(&skipped, tensor)?;
                tensor.shallow_clone().f_copy_(&kept)?;
            }
        }
        Ok(())
    }
}

/// The tensors and rates with which a rule updates one parameter.
#[derive(Debug)]
pub struct ParameterStep<'a> {
    param: &'a Tensor,
    grad: Tensor,
    slots: &'a [Slot],
    states: &'a [&'a Tensor],
    first: bool,
    rates: Rates,
    on_device: Option<&'a Tensor>,
}

impl ParameterStep<'_> {
    /// Returns the parameter, which the rule updates in place. It is the model's tensor or, if the
    /// parameter is updated in f32, an f32 copy. If the rule is
    /// [`ELEMENTWISE`](Algorithm::ELEMENTWISE), the tensor may be a flat piece of the parameter.
    pub fn param(&self) -> &Tensor {
        self.param
    }

    /// Returns the parameter's gradient, unscaled and clipped, in the dtype of
    /// [`param`](Self::param).
    pub fn grad(&self) -> &Tensor {
        &self.grad
    }

    /// Returns the state tensor of a slot, which the rule updates in place.
    ///
    /// # Errors
    /// When [`Algorithm::slots`] declares no slot of this name.
    pub fn slot(&self, name: &str) -> Result<&Tensor> {
        let at = self.slots.iter().position(|slot| slot.name == name);
        at.map(|at| self.states[at]).ok_or_else(|| {
            let names: Vec<&str> = self.slots.iter().map(|slot| slot.name).collect();
            Error::config(format!(
                "optimizer: no slot is called `{name}`: `slots` returned {names:?}"
            ))
        })
    }

    /// Increments a step count ([`Slot::count`]). Returns the number of steps including this one.
    ///
    /// # Errors
    /// When [`Algorithm::slots`] declares no slot of this name, or a tensor operation fails.
    pub fn count(&self, name: &str) -> Result<Number> {
        let mut slot = self.slot(name)?.shallow_clone();
        self.number(&slot.f_add_scalar_(1.0)?)
    }

    /// Returns the learning rate of this step.
    pub fn lr(&self) -> Number {
        self.rate(0, self.rates.lr)
    }

    /// Returns the momentum of this step. It is 0 if the optimizer has no momentum.
    pub fn momentum(&self) -> Number {
        self.rate(1, self.rates.momentum.unwrap_or_default())
    }

    /// Returns whether this is the first update of the parameter.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// Returns the value of a tensor with one element. If the step may be captured in a CUDA graph,
    /// the value stays on the device. Otherwise the host waits for the value.
    ///
    /// # Errors
    /// When the tensor does not have exactly one element.
    pub fn number(&self, tensor: &Tensor) -> Result<Number> {
        Number::of(tensor, self.on_device.is_some())
    }

    /// Returns the Euclidean norm of a tensor: the square root of the sum of its squares.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn norm(&self, tensor: &Tensor) -> Result<Number> {
        self.number(&tensor.f_norm()?)
    }

    fn rate(&self, at: i64, on_host: f64) -> Number {
        match self.on_device {
            None => on_host.into(),
            Some(rates) => Number::of_element(rates, at),
        }
    }
}
