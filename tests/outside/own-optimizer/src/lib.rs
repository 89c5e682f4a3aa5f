//! Your own optimizer: the crate's README is the page on it.

use std::rc::Rc;

use amp_core::{
    Error, Result,
    nn::Parameter,
    optim::{BuildOptimizer, OnDevice, Optimizer, Rates, Storage},
    state::State,
    tch::{Kind, Tensor, no_grad},
};

/// Sign descent with momentum (Signum; Bernstein et al., 2018): m ← β·m + (1 − β)·g, then
/// w ← w − lr·sign(m).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Signum {
    /// Learning rate: how far each weight moves in a step.
    pub lr: f64,
    /// β, the share of m that a step keeps.
    pub momentum: f64,
}

impl Default for Signum {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.9 }
    }
}

impl BuildOptimizer for Signum {
    fn build_with(
        &self,
        parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>> {
        let Self { lr, momentum } = *self;
        if !(lr >= 0.0 && lr.is_finite()) {
            return Err(Error::config(format!("Signum: lr is {lr}, but must be at least 0")));
        }
        if !(0.0..1.0).contains(&momentum) {
            return Err(Error::config(format!(
                "Signum: momentum is {momentum}, but must be in [0, 1)"
            )));
        }
        if storage != Storage::default() {
            return Err(Error::config(format!(
                "Signum has neither {} nor {} moments: leave both options out",
                storage.weights, storage.moments
            )));
        }
        let zeros = |parameter: &Parameter| -> Result<Tensor> {
            Ok(parameter.tensor.f_detach()?.f_to_kind(Kind::Float)?.f_zeros_like()?)
        };
        let moments = parameters.iter().map(zeros).collect::<Result<_>>()?;
        Ok(Box::new(Running { options: *self, parameters: parameters.into(), moments }))
    }
}

/// The optimizer over its parameters, with an m for each.
struct Running {
    options: Signum,
    parameters: Rc<[Parameter]>,
    moments: Vec<Tensor>,
}

const NAME: &str = "name";
const LR: &str = "param_groups/0/lr";
const MOMENTUM: &str = "param_groups/0/momentum";

/// Where the m of a parameter is saved.
fn buffer(parameter: &Parameter) -> String {
    format!("momentum_buffer/{}", parameter.name)
}

impl Optimizer for Running {
    fn name(&self) -> &'static str {
        "Signum"
    }

    fn parameters(&self) -> &Rc<[Parameter]> {
        &self.parameters
    }

    fn step_with(&mut self, known: OnDevice<'_>) -> Result<()> {
        if known.found_inf.is_some() || known.factor.is_some() {
            return Err(Error::config("Signum cannot skip a step or scale gradients by itself"));
        }
        let Signum { lr, momentum } = self.options;
        for (Parameter { tensor, .. }, moment) in self.parameters.iter().zip(&mut self.moments) {
            let gradient = tensor.f_grad()?;
            if !gradient.defined() {
                continue;
            }
            no_grad(|| -> Result<()> {
                let _ = moment.f_lerp_(&gradient.f_to_kind(Kind::Float)?, 1.0 - momentum)?;
                let update = moment.f_sign()?.f_mul_scalar(lr)?;
                let _ = tensor.shallow_clone().f_sub_(&update)?;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn rates(&self) -> Vec<Rates> {
        vec![Rates { lr: self.options.lr, momentum: Some(self.options.momentum) }]
    }

    fn set_rates(&mut self, rates: &[Rates]) {
        if let [Rates { lr, momentum }] = *rates {
            self.options = Signum { lr, momentum: momentum.unwrap_or(self.options.momentum) };
        }
    }

    fn state(&self) -> Result<State> {
        let mut state = State::default();
        state.put(NAME, &self.name())?;
        state.put(LR, &self.options.lr)?;
        state.put(MOMENTUM, &self.options.momentum)?;
        for (parameter, moment) in self.parameters.iter().zip(&self.moments) {
            state.put_tensor(buffer(parameter), moment);
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let saved: String = state.get(NAME)?;
        if saved != self.name() {
            return Err(Error::config(format!(
                "the saved state is of {saved}, but Signum would load it: configure what was saved"
            )));
        }
        let options = Signum { lr: state.get(LR)?, momentum: state.get(MOMENTUM)? };
        let found = self.parameters.iter().zip(&self.moments);
        let found = found.map(|(parameter, own)| state.tensor_like(&buffer(parameter), own));
        let found: Vec<&Tensor> = found.collect::<Result<_>>()?;
        for (moment, saved) in self.moments.iter_mut().zip(found) {
            moment.f_copy_(saved)?;
        }
        self.options = options;
        Ok(())
    }
}

/// The page's Rust is compiled and run by `cargo test`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Page;
