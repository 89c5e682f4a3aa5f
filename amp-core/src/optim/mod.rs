//! Optimizers and learning-rate schedulers with torch.optim's rules, on fused kernels.

mod adam;
mod algorithm;
mod config;
mod engine;
mod groups;
mod lion;
mod moments;
mod parts;
mod patterns;
mod rmsprop;
mod saved;
mod scheduled;
mod scheduler;
mod sgd;
mod weight_update;

pub use adam::{Adam, AdamW};
pub use config::{OptimizerConfig, Optimizers};
pub use groups::ParamGroups;
pub use lion::Lion;
pub use moments::Moments;
pub use rmsprop::RmsProp;
pub use scheduled::{GroupRates, Scheduled};
pub use scheduler::{
    BuildScheduler, CosineAnnealing, LinearLr, OneCycle, Rates, ReduceLrOnPlateau, Scheduler,
    SequentialLr, StepLr, ThresholdMode, WarmupCosine,
};
pub use sgd::Sgd;
pub use weight_update::{Storage, WeightUpdate};

use std::rc::Rc;

use groups::build_plainly;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result, ffi, nn::Parameter, state::State};

/// What [`configure_optimizers`](crate::LightningModule::configure_optimizers) may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingPlan {
    /// Epochs at most.
    pub max_epochs: i64,
    /// Optimizer steps over all epochs, as Lightning's property of this name.
    pub estimated_stepping_batches: i64,
}

/// When a scheduler moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// After every applied optimizer step.
    Step,
    /// After every epoch, when it has been validated.
    Epoch,
}

/// Options of an optimizer that can be built over parameters.
pub trait BuildOptimizer {
    /// Checks the options and makes the state.
    ///
    /// # Errors
    /// When an option is out of range, or `storage` is not for the parameters' dtype.
    fn build_with(
        &self,
        parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>>;

    /// [`build_with`](Self::build_with) PyTorch's way of keeping weights and averages.
    ///
    /// # Errors
    /// When an option is out of range.
    fn build(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>> {
        self.build_with(parameters, Storage::default())
    }
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
    /// Multiply the gradients: [`OnDevice::factor`].
    pub scales: bool,
    /// Be part of a CUDA graph: a step reads its rates from the device, where
    /// [`Optimizer::write_rates`] writes them.
    pub captures: bool,
}

impl Abilities {
    fn all(are: bool) -> Self {
        Self { skips: are, scales: are, captures: are }
    }

    fn and(self, other: Self) -> Self {
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

    /// Sets the rates of the next step, group by group.
    fn set_rates(&mut self, rates: &[Rates]);

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

/// Refuses an option outside its range, in one wording.
fn require(holds: bool, option: &str, value: f64, range: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(Error::config(format!("optimizer: {option} is {value}, but must be {range}")))
}

fn require_betas((beta1, beta2): (f64, f64)) -> Result<()> {
    require((0.0..1.0).contains(&beta1), "betas.0", beta1, "in [0, 1)")?;
    require((0.0..1.0).contains(&beta2), "betas.1", beta2, "in [0, 1)")
}
