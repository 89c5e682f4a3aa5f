//! What one step works on.

use tch::Tensor;

use super::{Algorithm, Number, OnDevice, Rates, Slot, moments::Code};
use crate::{
    Error, Result,
    ffi::{Kernels, Known},
    precision::AutocastGuard,
};

/// The parameters of one step, their gradients and state.
#[derive(Debug)]
pub struct StepTensors<'a> {
    pub(super) params: &'a [&'a Tensor],
    pub(super) grads: &'a [&'a Tensor],
    pub(super) slots: &'a [Slot],
    /// By slot; what has 8 bits as codes.
    pub(super) states: &'a [Vec<&'a Tensor>],
    /// Of the slots with codes, in their order.
    pub(super) scales: &'a [Vec<&'a Tensor>],
    /// As `scales`, what the codes stand for.
    pub(super) codes: &'a [&'a Code],
    /// Whether these parameters have never been stepped; all of them or none.
    pub(super) first: bool,
    /// What the device alone knows.
    pub(super) known: OnDevice<'a>,
    /// Where a step that can be captured finds its rates.
    pub(super) rates: Option<&'a Tensor>,
}

impl StepTensors<'_> {
    /// Ours where it can be captured, or else libtorch's, of which `fused` is one for the whole step.
    pub(super) fn kernels(&self, fused: bool) -> Kernels<'_> {
        let OnDevice { factor, found_inf } = self.known;
        match self.rates {
            Some(rates) => Kernels::Ours(Known::new(rates, factor, found_inf)),
            None if fused => Kernels::Fused(found_inf),
            None => Kernels::Foreach,
        }
    }

    /// Runs a rule of tensor operations for each parameter, outside the graph of gradients and without autocast. The gradients that it sees are
    /// in their true size, and where the step is skipped on the device, nothing that it wrote stays.
    ///
    /// The rule is a function or a closure that captures nothing: it has the options from its argument.
    ///
    /// # Errors
    /// The rule's.
    pub fn each<A: Algorithm>(
        &self,
        options: &A,
        rule: fn(&A, &ParameterStep<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(like) = self.params.first() else {
            return Ok(());
        };
        // A step within a region of the user's would multiply in 16 bits.
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

/// The step of one parameter.
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
    /// The parameter, to be written in place: the model's own tensor, its f32 copy where it is stepped in f32, or a flat
    /// piece of that for an [`ELEMENTWISE`](Algorithm::ELEMENTWISE) rule.
    pub fn param(&self) -> &Tensor {
        self.param
    }

    /// Its gradient in its true size, in the dtype of [`param`](Self::param).
    pub fn grad(&self) -> &Tensor {
        &self.grad
    }

    /// A slot of its state, to be written in place.
    ///
    /// # Errors
    /// When [`Algorithm::slots`] has no such slot.
    pub fn slot(&self, name: &str) -> Result<&Tensor> {
        let at = self.slots.iter().position(|slot| slot.name == name);
        at.map(|at| self.states[at]).ok_or_else(|| {
            let names: Vec<&str> = self.slots.iter().map(|slot| slot.name).collect();
            Error::config(format!("optimizer: no slot is called `{name}`: slots has {names:?}"))
        })
    }

    /// Counts this step in a [`Slot::count`], and gives the number of steps with this one.
    ///
    /// # Errors
    /// As [`slot`](Self::slot).
    pub fn count(&self, name: &str) -> Result<Number> {
        let mut slot = self.slot(name)?.shallow_clone();
        self.number(&slot.f_add_scalar_(1.0)?)
    }

    /// The learning rate of this step.
    pub fn lr(&self) -> Number {
        self.rate(0, self.rates.lr)
    }

    /// The momentum of this step; 0 where the optimizer has none.
    pub fn momentum(&self) -> Number {
        self.rate(1, self.rates.momentum.unwrap_or_default())
    }

    /// Whether the parameter has never been stepped.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// The value of a tensor of one element. On CUDA it stays there where the step may be captured; elsewhere the host
    /// waits for it.
    ///
    /// # Errors
    /// When the tensor has other than one element.
    pub fn number(&self, tensor: &Tensor) -> Result<Number> {
        Number::of(tensor, self.on_device.is_some())
    }

    /// The root of the sum of a tensor's squares.
    ///
    /// # Errors
    /// When the device fails.
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
