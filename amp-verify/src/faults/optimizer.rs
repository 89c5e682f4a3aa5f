//! Faults (mistakes on purpose) in the step of an optimizer. They are caused by a wrapper around
//! the model's optimizer.

use std::{cell::Cell, rc::Rc};

use amp_core::{
    Result,
    nn::Parameter,
    optim::{BuildOptimizer, Capabilities, OnDevice, Optimizer, Rates, Storage},
    state::State,
    tch::{Kind, Tensor, no_grad},
};
use serde_json::{Map, Value};

use super::Fault;

/// The norm to which the fault `ClipsEachParameter` clips the gradient of each parameter.
const EACH: f64 = 0.02;

/// Wraps the optimizer, so that its steps contain the mistake `fault`.
pub(super) fn broken(
    fault: Fault,
    watched: Rc<Cell<bool>>,
    inner: Box<dyn BuildOptimizer>,
) -> Box<dyn BuildOptimizer> {
    Box::new(Build { fault, watched, inner })
}

struct Build {
    fault: Fault,
    watched: Rc<Cell<bool>>,
    inner: Box<dyn BuildOptimizer>,
}

impl BuildOptimizer for Build {
    fn build_with(
        &self,
        mut parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>> {
        match self.fault {
            Fault::ParameterNotHeld => drop(parameters.remove(0)),
            Fault::CopyHeld => {
                let copy = no_grad(|| parameters[0].tensor.f_detach_copy())?;
                parameters[0].tensor = copy.f_set_requires_grad(true)?;
            }
            _ => {}
        }
        let inner = self.inner.build_with(parameters, storage)?;
        let fresh = inner.state()?.copied()?;
        let watched = Rc::clone(&self.watched);
        Ok(Box::new(Broken { fault: self.fault, watched, inner, fresh }))
    }
}

struct Broken {
    fault: Fault,
    watched: Rc<Cell<bool>>,
    inner: Box<dyn Optimizer>,
    /// The state of the optimizer before the first step, to which the fault `AveragesLost` resets
    /// it.
    fresh: State,
}

impl Broken {
    fn gradients(&self) -> Result<Vec<Tensor>> {
        let mut gradients = Vec::new();
        for parameter in self.inner.parameters().iter() {
            let gradient = parameter.tensor.f_grad()?;
            if gradient.defined() {
                gradients.push(gradient);
            }
        }
        Ok(gradients)
    }

    fn times(&self, factor: f64) -> Result<()> {
        for mut gradient in self.gradients()? {
            let _ = no_grad(|| gradient.f_mul_scalar_(factor))?;
        }
        Ok(())
    }

    /// Rounds the weights after the step, as an optimizer with weights in a 16-bit dtype would.
    fn round_weights(&self) -> Result<()> {
        let rounded: fn(&Tensor) -> Result<Tensor> = match self.fault {
            Fault::Bf16Weights => {
                |tensor| Ok(tensor.f_to_kind(Kind::BFloat16)?.f_to_kind(tensor.kind())?)
            }
            // Truncates to multiples of 2⁻¹³: the spacing of f16 numbers between 0.125 and 0.25,
            // where most weights are.
            Fault::TruncatingRounding => {
                |tensor| Ok(tensor.f_mul_scalar(8192.0)?.f_trunc()?.f_div_scalar(8192.0)?)
            }
            _ => return Ok(()),
        };
        for Parameter { tensor, .. } in self.inner.parameters().iter() {
            no_grad(|| -> Result<_> { Ok(tensor.shallow_clone().f_copy_(&rounded(tensor)?)?) })?;
        }
        Ok(())
    }

    /// Makes a step whose learning rates are multiplied by `factor`.
    fn at_rates(&mut self, factor: f64, known: OnDevice<'_>) -> Result<()> {
        let rates = self.inner.rates();
        let other = rates.iter().map(|rates| Rates { lr: factor * rates.lr, ..*rates });
        self.inner.set_rates(&other.collect::<Vec<_>>());
        let stepped = self.inner.step_with(known);
        self.inner.set_rates(&rates);
        stepped
    }
}

impl Optimizer for Broken {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn parameters(&self) -> &Rc<[Parameter]> {
        self.inner.parameters()
    }

    fn step_with(&mut self, known: OnDevice<'_>) -> Result<()> {
        match self.fault {
            Fault::ClipsTooLittle if !self.watched.get() => self.times(1.0 / 0.9)?,
            Fault::DeferredFactorWrong => {
                if let Some(factor) = known.factor {
                    let factor = factor.f_mul_scalar(1.1)?;
                    for mut gradient in self.gradients()? {
                        let _ = no_grad(|| gradient.f_mul_(&factor))?;
                    }
                }
                return self.inner.step_with(OnDevice { factor: None, ..known });
            }
            Fault::ClipsEachParameter => {
                for mut gradient in self.gradients()? {
                    let norm = gradient.f_norm()?.f_double_value(&[])?;
                    let _ = no_grad(|| gradient.f_mul_scalar_((EACH / norm).min(1.0)))?;
                }
            }
            Fault::RateOnePercentOff => return self.at_rates(1.01, known),
            Fault::SteppedTwice => self.inner.step_with(known)?,
            Fault::WeightWrittenBack => {
                let mut weight = self.inner.parameters()[0].tensor.shallow_clone();
                let kept = no_grad(|| weight.f_detach_copy())?;
                self.inner.step_with(known)?;
                no_grad(|| weight.f_copy_(&kept))?;
                return Ok(());
            }
            Fault::AveragesLost => {
                let rates = self.inner.rates();
                self.inner.load_state(&self.fresh)?;
                self.inner.set_rates(&rates);
            }
            _ => {}
        }
        self.inner.step_with(known)?;
        self.round_weights()?;
        if self.fault == Fault::AveragesRounded {
            let state = self.inner.state()?;
            for (_, tensor) in state.tensors().filter(|(_, tensor)| tensor.numel() > 1) {
                let rounded = tensor.f_to_kind(Kind::BFloat16)?.f_to_kind(tensor.kind())?;
                no_grad(|| tensor.shallow_clone().f_copy_(&rounded))?;
            }
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        let own = self.inner.capabilities();
        match self.fault {
            // Lets the trainer pass the clipping factor to this wrapper even if the inner optimizer
            // does not take it: the wrapper multiplies the gradients itself.
            Fault::DeferredFactorWrong => Capabilities { scales: true, captures: false, ..own },
            _ => own,
        }
    }

    fn write_rates(&mut self) -> Result<()> {
        match self.fault {
            // Leaves out the update of the learning rates that a captured CUDA graph reads, so a
            // replayed step keeps those of its capture.
            Fault::CapturedRatesStale => Ok(()),
            _ => self.inner.write_rates(),
        }
    }

    fn rates(&self) -> Vec<Rates> {
        self.inner.rates()
    }

    fn options(&self, place: usize) -> Option<Map<String, Value>> {
        self.inner.options(place)
    }

    fn set_rates(&mut self, rates: &[Rates]) {
        if self.fault != Fault::RatesIgnored {
            self.inner.set_rates(rates);
        }
    }

    fn extend_state(&mut self) -> Result<()> {
        self.inner.extend_state()
    }

    fn state(&self) -> Result<State> {
        self.inner.state()
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        match self.fault {
            Fault::AveragesLostOnLoad => Ok(()),
            _ => self.inner.load_state(state),
        }
    }

    fn note(&self) -> Option<String> {
        self.inner.note()
    }

    fn zero_grad(&mut self) -> Result<()> {
        match self.fault {
            Fault::ZeroGradMissing => Ok(()),
            _ => self.inner.zero_grad(),
        }
    }
}
