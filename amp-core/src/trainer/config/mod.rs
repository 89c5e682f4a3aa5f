//! The trainer's options.

mod averaging;
mod checks;
mod freeze;
mod graph;
mod logging;
mod loops;
mod memory;
mod numerics;
mod optimization;
mod recovery;

use tch::{Device, Kind};

pub(super) use self::loops::{Validations, show_time};
pub use self::{
    averaging::Averaging,
    checks::{Check, ChecksConfig},
    freeze::Freeze,
    graph::Graph,
    logging::LoggingConfig,
    loops::{Loops, ValCheckInterval, parse_time},
    memory::MemoryConfig,
    numerics::NumericsConfig,
    optimization::OptimizationConfig,
    recovery::{AtFloor, NonFinite, RecoveryConfig, ScaleFloor},
};

use crate::{
    Error, LightningModule, Result,
    data::{DataLoader, DataModule},
    nn,
    optim::{TrainingPlan, WeightUpdate},
    precision::{Policy, Precision},
};

/// The trainer's options. An option that Lightning also has is named as in Lightning.
///
/// ```
/// use amp_core::{precision::Clip, prelude::*, trainer::NonFinite};
///
/// let config = TrainerConfig::new(Precision::F16Mixed, Device::Cpu).with(|config| {
///     config.max_epochs = 3;
///     config.optimization.gradient_clip = Some(Clip::Norm(1.0));
///     config.recovery.on_non_finite = NonFinite::Stop;
/// });
/// assert!(config.check().is_ok());
/// ```
#[derive(Debug, Clone)]
pub struct TrainerConfig {
    /// The dtypes in which the run computes, and in which it stores its weights.
    pub precision: Precision,
    /// The device on which the run trains.
    pub device: Device,
    /// The seed for the order in which the examples are read. The seed does not affect the initial
    /// weights and dropout, because these take their random numbers from libtorch's generator.
    pub seed: u64,
    /// The largest number of epochs that the run trains.
    pub max_epochs: i64,
    /// Training ends after this number of optimizer steps, if the run reaches it before the end of
    /// the last epoch.
    pub max_steps: Option<u64>,
    /// Whether whole steps run as CUDA graphs. Results are bit-identical with and without CUDA
    /// graphs.
    pub graph: Graph,
    /// The length of the run, the number of batches of each data set that the run uses, and the
    /// moments at which it validates.
    pub loops: Loops,
    /// Loss scaling, and the formats of weights, optimizer state and gradients.
    pub numerics: NumericsConfig,
    /// How gradients are accumulated and clipped, and which weights are trained and averaged.
    pub optimization: OptimizationConfig,
    /// How much memory the run may use, and what happens when memory is short.
    pub memory: MemoryConfig,
    /// What happens after a step whose loss or gradients are not finite, and when the loss scale is
    /// too low.
    pub recovery: RecoveryConfig,
    /// Which training steps are reported to the subscribers, and which are profiled.
    pub logging: LoggingConfig,
    /// Which invariants of training are checked, and how often.
    pub checks: ChecksConfig,
}

impl TrainerConfig {
    /// Creates options with Lightning's defaults, with three exceptions: a skipped step changes
    /// nothing, a step whose gradients are not finite is skipped under every precision, and no
    /// batch is validated before training.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::{precision::Clip, prelude::*};
    ///
    /// let config = TrainerConfig::new(Precision::Bf16Mixed, Device::Cpu).with(|config| {
    ///     config.max_epochs = 10;
    ///     config.optimization.gradient_clip = Some(Clip::Norm(1.0));
    /// });
    /// assert_eq!(config.optimization.accumulate_grad_batches, 1);
    /// ```
    pub fn new(precision: Precision, device: Device) -> Self {
        Self {
            precision,
            device,
            seed: 0,
            max_epochs: 1000,
            max_steps: None,
            graph: Graph::default(),
            loops: Loops::default(),
            numerics: NumericsConfig::default(),
            optimization: OptimizationConfig::default(),
            memory: MemoryConfig::default(),
            recovery: RecoveryConfig::default(),
            logging: LoggingConfig::default(),
            checks: ChecksConfig::default(),
        }
    }

    /// Calls `set`, which changes some of the options, and returns the changed options.
    #[must_use]
    pub fn with(mut self, set: impl FnOnce(&mut Self)) -> Self {
        set(&mut self);
        self
    }

    /// Returns the run's precision policy: its precision on its device.
    pub fn policy(&self) -> Policy {
        Policy::new(self.precision, self.device)
    }

    /// Returns a loader that reads the same training batches, in the same order, as a run with
    /// these options.
    ///
    /// # Errors
    /// When the data cannot be split into batches, or the device has no memory for a set that should be
    /// stored there.
    pub fn train_loader(&self, data: &DataModule) -> Result<DataLoader> {
        let loops = self.loops.resolved();
        let loader = match loops.overfit_batches {
            Some(_) => data.clone().in_order().train_loader(self.policy(), self.seed)?.repeating(),
            None => data.train_loader(self.policy(), self.seed)?,
        };
        Ok(loader.drawing(self.seed).limited(loops.limit_train_batches))
    }

    /// Returns the training plan: the number of epochs and steps for which the learning-rate
    /// schedules of a run over the batches of `loader` are built. This is
    /// [`optimization.plan`](OptimizationConfig::plan) if given, and otherwise the length that the
    /// run has without `fast_dev_run`.
    pub fn training_plan(&self, loader: &DataLoader) -> TrainingPlan {
        let tried = Loops { fast_dev_run: None, ..self.loops.clone() }.resolved();
        let batches = loader.batches_under(tried.limit_train_batches).max(1);
        self.optimization.plan.unwrap_or_else(|| self.length(batches, self.max_epochs))
    }

    /// Returns the length of a run that has `batches` batches per epoch.
    pub(super) fn length(&self, batches: i64, max_epochs: i64) -> TrainingPlan {
        // A run without an end has a very large number of epochs, so the product may exceed the
        // range of i64.
        let steps = self.steps_per_epoch(batches).saturating_mul(max_epochs);
        let most = self.max_steps.map(|most| i64::try_from(most).unwrap_or(i64::MAX));
        let estimated_stepping_batches = most.map_or(steps, |most| steps.min(most));
        TrainingPlan { max_epochs, estimated_stepping_batches }
    }

    fn steps_per_epoch(&self, batches: i64) -> i64 {
        (batches - 1) / self.optimization.accumulate_grad_batches + 1
    }

    /// Returns the epoch of the run's last step, and the number of steps before that step, assuming
    /// that no step is skipped. The run has `batches` batches per epoch and the length `length`.
    pub(super) fn last_position(&self, batches: i64, length: TrainingPlan) -> (i64, u64) {
        let last = length.estimated_stepping_batches.max(1) - 1;
        (last / self.steps_per_epoch(batches).max(1), last.unsigned_abs())
    }

    /// Checks the options as far as possible without a model and data.
    /// [`Trainer::fit`](crate::Trainer::fit) makes these checks, too.
    ///
    /// # Errors
    /// When an option is out of range, or is invalid for the precision.
    pub fn check(&self) -> Result<()> {
        if self.max_epochs < 1 {
            let text = format!("max_epochs is {}, but must be at least 1", self.max_epochs);
            return Err(Error::config(text));
        }
        self.optimization.check()?;
        self.logging.check()?;
        self.loops.check()?;
        self.memory.check()?;
        self.recovery.check(self.precision)
    }

    /// Returns an error if the forward pass changes a parameter that has a master weight: the next
    /// optimizer step would overwrite the change with the updated master weight.
    pub(super) fn check_changed_in_forward(&self, model: &dyn LightningModule) -> Result<()> {
        let is_narrow = |kind| matches!(kind, Kind::Half | Kind::BFloat16);
        let mut changed = nn::changed_in_forward(model).into_iter();
        match changed.find(|parameter| is_narrow(parameter.tensor.kind())) {
            Some(parameter) if self.numerics.weight_update == WeightUpdate::MasterWeights => {
                Err(Error::config(format!(
                    "`{}` is a 16-bit weight with max_norm, which rescales the weight's vectors \
                     in the forward pass; with master weights, the next step would undo the \
                     rescaling: run the layer in `#[precision(fp32)]`, or choose another \
                     weight_update",
                    parameter.name
                )))
            }
            _ => Ok(()),
        }
    }

    /// Returns an error for options that cannot apply to a model that steps its optimizers itself.
    pub(super) fn check_manual(&self, model: &str) -> Result<()> {
        let Self { optimization, memory, recovery, .. } = self;
        let cannot = [
            (optimization.gradient_clip.is_some(), "gradient_clip", "clip in manual_step"),
            (
                optimization.accumulate_grad_batches > 1,
                "accumulate_grad_batches",
                "call `accumulate` of the optimizer in manual_step",
            ),
            (memory.budget.is_some(), "memory_budget", "use Checkpoint layers"),
            (
                recovery.runs_again(),
                "repeating a step",
                "set on_non_finite to skip, stop or restore-last-good, and scale_floor.then to \
                 halt or warn",
            ),
        ];
        match cannot.into_iter().find(|(asked, ..)| *asked) {
            Some((_, what, instead)) => Err(Error::config(format!(
                "`{model}` optimizes manually, which does not allow {what}: {instead}"
            ))),
            None => Ok(()),
        }
    }
}
