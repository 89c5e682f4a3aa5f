//! Optimizers and learning-rate schedulers with torch.optim's rules, on fused kernels.

mod adam;
mod scheduler;
mod sgd;

pub use adam::{Adam, AdamW};
pub use scheduler::{
    BuildScheduler, CosineAnnealing, LinearLr, OneCycle, Rates, Scheduler, StepLr, WarmupCosine,
};
pub use sgd::Sgd;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result, ffi, nn::Parameter};

/// What [`configure_optimizers`](crate::LightningModule::configure_optimizers) may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// After every epoch.
    Epoch,
}

/// An optimizer and, optionally, its schedule: options only, no state.
pub struct OptimizerConfig {
    optimizer: Box<dyn BuildOptimizer>,
    scheduler: Option<(Box<dyn BuildScheduler>, Interval)>,
}

impl OptimizerConfig {
    /// This optimizer at a constant rate.
    pub fn new(optimizer: impl BuildOptimizer + 'static) -> Self {
        Self { optimizer: Box::new(optimizer), scheduler: None }
    }

    /// Adds a schedule.
    #[must_use]
    pub fn with_scheduler(
        mut self,
        scheduler: impl BuildScheduler + 'static,
        interval: Interval,
    ) -> Self {
        self.scheduler = Some((Box::new(scheduler), interval));
        self
    }

    /// Builds both over `parameters`; the schedule's first rate is already set.
    ///
    /// # Errors
    /// When an option is out of range or there is nothing to train.
    pub fn build(self, parameters: Vec<Parameter>) -> Result<Scheduled> {
        if parameters.is_empty() {
            return Err(Error::config("the model has no parameters: give it at least one layer"));
        }
        let mut optimizer = self.optimizer.build(parameters)?;
        let scheduler = match self.scheduler {
            None => None,
            Some((config, interval)) => {
                let scheduler = config.build(optimizer.rates())?;
                optimizer.set_rates(scheduler.rates());
                Some((scheduler, interval))
            }
        };
        Ok(Scheduled { optimizer, scheduler })
    }
}

/// A built optimizer with its schedule.
pub struct Scheduled {
    /// The optimizer.
    pub optimizer: Box<dyn Optimizer>,
    scheduler: Option<(Box<dyn Scheduler>, Interval)>,
}

impl Scheduled {
    /// Tells the schedule that an interval of this kind has passed.
    pub fn advance(&mut self, passed: Interval) {
        if let Some((scheduler, interval)) = &mut self.scheduler
            && *interval == passed
        {
            scheduler.advance();
            self.optimizer.set_rates(scheduler.rates());
        }
    }
}

/// Options of an optimizer that can be built over parameters.
pub trait BuildOptimizer {
    /// Checks the options and makes the state.
    ///
    /// # Errors
    /// When an option is out of range.
    fn build(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>>;
}

/// An optimizer with its parameters and state.
pub trait Optimizer {
    /// The parameters, in order of declaration.
    fn parameters(&self) -> &[Parameter];

    /// Moves every parameter that has a gradient.
    ///
    /// # Errors
    /// When the kernel fails.
    fn step(&mut self) -> Result<()>;

    /// The current rates.
    fn rates(&self) -> Rates;

    /// Sets the rates of the next step.
    fn set_rates(&mut self, rates: Rates);

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

/// The tensors of one fused call, grouped by dtype since a kernel takes one.
#[derive(Default)]
struct Group {
    kind: Option<tch::Kind>,
    params: Vec<Tensor>,
    grads: Vec<Tensor>,
    /// Places in the optimizer's parameter list.
    index: Vec<usize>,
}

/// The parameters that have gradients, by dtype.
fn groups(parameters: &[Parameter]) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, parameter) in parameters.iter().enumerate() {
        let grad = parameter.tensor.f_grad()?;
        if !grad.defined() {
            continue;
        }
        let kind = Some(parameter.tensor.kind());
        let at = groups.iter().position(|group| group.kind == kind).unwrap_or_else(|| {
            groups.push(Group { kind, ..Default::default() });
            groups.len() - 1
        });
        groups[at].params.push(parameter.tensor.shallow_clone());
        groups[at].grads.push(grad);
        groups[at].index.push(index);
    }
    Ok(groups)
}

/// Elements of 16-bit parameters that are widened to f32 at once: bounds the memory of the copies.
const WIDENED: usize = 1 << 22;

impl Group {
    /// Steps the group: as it is, or on f32 copies if its dtype `widens`. `step` gets parameters,
    /// gradients and their places in the optimizer's list.
    fn step(
        &self,
        widens: fn(tch::Kind) -> bool,
        mut step: impl FnMut(&[Tensor], &[Tensor], &[usize]) -> Result<()>,
    ) -> Result<()> {
        match self.kind.is_some_and(widens) {
            true => self.widened(step),
            false => step(&self.params, &self.grads, &self.index),
        }
    }

    /// Steps on f32 copies of parameters and gradients, a part of them at a time, and rounds the
    /// result: for what a 16-bit kernel cannot do. `step` gets the places of its part in the
    /// optimizer's list.
    fn widened(
        &self,
        mut step: impl FnMut(&[Tensor], &[Tensor], &[usize]) -> Result<()>,
    ) -> Result<()> {
        let mut rest = 0..self.params.len();
        while !rest.is_empty() {
            let mut elements = 0;
            let part = rest.clone().take_while(|at| {
                let fits = elements == 0 || elements + self.params[*at].numel() <= WIDENED;
                elements += self.params[*at].numel();
                fits
            });
            let part = rest.start..rest.start + part.count();
            let widen = |narrow: &[Tensor]| -> Result<Vec<Tensor>> {
                narrow[part.clone()].iter().map(wide).collect()
            };
            let (params, grads) = (widen(&self.params)?, widen(&self.grads)?);
            step(&params, &grads, &self.index[part.clone()])?;
            for (to, from) in self.params[part.clone()].iter().zip(&params) {
                tch::no_grad(|| to.shallow_clone().f_copy_(from))?;
            }
            rest.start = part.end;
        }
        Ok(())
    }
}

/// Zeros for each parameter's state: in f32 if its dtype `widens`, else in its own.
fn zeros_like(parameters: &[Parameter], widens: fn(tch::Kind) -> bool) -> Result<Vec<Tensor>> {
    let zeros = |parameter: &Parameter| {
        let zeros = parameter.tensor.f_zeros_like()?;
        match widens(zeros.kind()) {
            true => wide(&zeros),
            false => Ok(zeros.f_detach()?),
        }
    };
    parameters.iter().map(zeros).collect()
}

/// A copy in f32, outside the graph.
fn wide(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_to_kind(tch::Kind::Float)?)
}
