use std::{collections::BTreeMap, rc::Rc};

use tch::Device;

use crate::{
    Error, Result,
    optim::WeightUpdate,
    precision::{Clip, GradScalerConfig, Policy, Precision, Region},
};

/// The trainer's options, by Lightning's names.
#[derive(Debug, Clone)]
pub struct TrainerConfig {
    /// Epochs to train.
    pub max_epochs: i64,
    /// The precision.
    pub precision: Precision,
    /// Where to run.
    pub device: Device,
    /// Seed of the order of examples (weights and dropout follow libtorch's generator).
    pub seed: u64,
    /// Gradient clipping, if any.
    pub gradient_clip: Option<Clip>,
    /// Batches whose gradients are added up to one step.
    pub accumulate_grad_batches: i64,
    /// Optimizer steps between two logged ones, counted across epochs.
    pub log_every_n_steps: i64,
    /// How optimizers write to 16-bit parameters, which the `*-true` precisions have.
    pub weight_update: WeightUpdate,
    /// Whether a skipped step moves the schedule and the step count, as Lightning does.
    pub skipped_step_advances: bool,
    /// Whether steps whose gradients are not finite are skipped under every precision; `16-mixed`
    /// does so anyway. Costs a pass over the gradients and one host read a step.
    pub skip_non_finite: bool,
    /// Optimizer steps between two that are profiled, counted across epochs: their phases are
    /// timed, with the device waited for.
    pub profile_every_n_steps: Option<i64>,
    /// The scaler's constants, used by `16-mixed`.
    pub scaler: GradScalerConfig,
    /// Precision regions by module path, over those the model declares.
    pub islands: Rc<BTreeMap<String, Region>>,
    /// Whether the training set is shuffled anew each epoch.
    pub shuffle: bool,
}

impl TrainerConfig {
    /// Lightning's defaults, except that a skipped step moves nothing.
    pub fn new(precision: Precision, device: Device) -> Self {
        Self {
            max_epochs: 1000,
            precision,
            device,
            seed: 0,
            gradient_clip: None,
            accumulate_grad_batches: 1,
            log_every_n_steps: 50,
            weight_update: WeightUpdate::default(),
            skipped_step_advances: false,
            skip_non_finite: false,
            profile_every_n_steps: None,
            scaler: GradScalerConfig::default(),
            islands: Rc::default(),
            shuffle: true,
        }
    }

    /// The policy of the run.
    pub fn policy(&self) -> Policy {
        Policy::new(self.precision, self.device)
    }

    pub(super) fn check(&self) -> Result<()> {
        let positive = |name: &str, value: i64| {
            if value > 0 {
                return Ok(());
            }
            Err(Error::config(format!("{name} is {value}, but must be at least 1")))
        };
        positive("max_epochs", self.max_epochs)?;
        positive("accumulate_grad_batches", self.accumulate_grad_batches)?;
        positive("log_every_n_steps", self.log_every_n_steps)?;
        positive("profile_every_n_steps", self.profile_every_n_steps.unwrap_or(1))?;
        self.gradient_clip.map(Clip::validated).transpose()?;
        Ok(())
    }
}
