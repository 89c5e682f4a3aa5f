//! What is run: a model, its data and the options that all precisions share.

use std::rc::Rc;

use amp_core::{
    Error, Hyperparameters, LightningModule, Result, TrainerConfig,
    data::{DataModule, Loading},
    optim::{Moments, WeightUpdate},
    precision::{Clip, GradScalerConfig, GradientStorage, Precision},
    random,
    tch::Device,
    trainer::{Graph, NonFinite, ScaleFloor},
};
use fixtures::{data::DataKind, models::Model};

/// Builds a model from hyperparameters, drawing its weights from libtorch's global generator.
pub type Build = dyn Fn(&Hyperparameters) -> Result<Box<dyn LightningModule>>;

/// A model before it is built.
#[derive(Clone)]
pub struct Subject {
    /// Its name.
    pub name: &'static str,
    /// The validation metric it is judged by; larger is better.
    pub metric: &'static str,
    /// How it is built.
    pub build: Rc<Build>,
}

impl From<&'static Model> for Subject {
    fn from(model: &'static Model) -> Self {
        let build = Rc::new(|hyperparameters: &Hyperparameters| model.build(hyperparameters));
        Self { name: model.name, metric: model.metric, build }
    }
}

/// A model with everything but the precision decided.
#[derive(Clone)]
pub struct Case {
    /// The model.
    pub model: Subject,
    /// The loaded data.
    pub data: DataModule,
    /// Hyperparameters, merged: the entry's, the data's, the user's.
    pub hyperparameters: Hyperparameters,
    /// The trainer's options; those of the baseline. Its seed is that of weights and dropout too.
    pub trainer: TrainerConfig,
    /// The value that ends training when it no longer falls, and for how many epochs.
    pub early_stopping: Option<(String, u32)>,
}

/// What a user may decide about a case; `None` leaves the model's own.
#[derive(Debug, Default)]
pub struct Choices {
    /// The data set.
    pub data: Option<DataKind>,
    /// Epochs.
    pub epochs: Option<i64>,
    /// Examples in a batch.
    pub batch_size: Option<i64>,
    /// Seed.
    pub seed: u64,
    /// Gradient clipping.
    pub clip: Option<Clip>,
    /// Batches whose gradients are added up to one step.
    pub accumulate_grad_batches: Option<i64>,
    /// Optimizer steps after which training ends.
    pub max_steps: Option<u64>,
    /// Optimizer steps between two logged ones.
    pub log_every_n_steps: Option<u64>,
    /// Optimizer steps between two profiled ones.
    pub profile_every_n_steps: Option<u64>,
    /// What is done about steps that are not finite.
    pub on_non_finite: NonFinite,
    /// How low the loss scale may fall.
    pub scale_floor: ScaleFloor,
    /// How it starts and grows.
    pub scaler: GradScalerConfig,
    /// How optimizers write to 16-bit weights.
    pub weight_update: WeightUpdate,
    /// How optimizers keep their running averages.
    pub moments: Moments,
    /// How gradients are kept from the backward pass to the step.
    pub gradients: GradientStorage,
    /// The most bytes that a step's tensors may hold at once.
    pub memory_budget: Option<u64>,
    /// Whether whole steps run as CUDA graphs.
    pub graph: Graph,
    /// The value to watch, and for how many epochs.
    pub early_stopping: Option<(String, u32)>,
    /// Hyperparameters by name.
    pub set: Hyperparameters,
    /// How batches reach the device.
    pub loading: Loading,
}

impl Case {
    /// Loads the data, merges the choices and builds the model once to see that it can be.
    ///
    /// # Errors
    /// When the data cannot be loaded or batched, an option is out of range, or a hyperparameter
    /// is unknown.
    pub fn new(model: &'static Model, choices: Choices, device: Device) -> Result<Self> {
        let kind = choices.data.unwrap_or(model.data);
        let epochs = choices.epochs.unwrap_or(model.epochs);
        if epochs < 1 {
            return Err(Error::config(format!("epochs {epochs}: it must be at least 1")));
        }
        let accumulate_grad_batches =
            choices.accumulate_grad_batches.unwrap_or(model.accumulate_grad_batches);
        if accumulate_grad_batches < 1 {
            return Err(Error::config(format!(
                "accumulate_grad_batches {accumulate_grad_batches}: it must be at least 1"
            )));
        }
        let clip = choices.clip.or(model.gradient_clip_val.map(Clip::Norm));
        let clip = clip.map(Clip::validated).transpose()?;
        let own = model.early_stopping.map(|(monitor, patience)| (monitor.to_owned(), patience));
        let early_stopping = choices.early_stopping.or(own);
        let mut hyperparameters = model.hyperparameters();
        for (name, size) in kind.sizes() {
            if let Some(own) = hyperparameters.get_mut(*name) {
                *own = (*size).into();
            }
        }
        hyperparameters.extend(choices.set);
        let mut data = kind.load(choices.batch_size.unwrap_or(model.batch_size))?;
        data.loading = choices.loading;
        data.check()?;
        let defaults = TrainerConfig::new(Precision::F32True, device);
        let steps = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let trainer = TrainerConfig {
            max_epochs: epochs,
            max_steps: choices.max_steps,
            seed: choices.seed,
            gradient_clip: clip,
            accumulate_grad_batches,
            log_every_n_steps: choices.log_every_n_steps.map_or(defaults.log_every_n_steps, steps),
            weight_update: choices.weight_update,
            moments: choices.moments,
            gradients: choices.gradients,
            memory_budget: choices.memory_budget,
            graph: choices.graph,
            on_non_finite: choices.on_non_finite,
            scale_floor: choices.scale_floor,
            scaler: choices.scaler,
            profile_every_n_steps: choices
                .profile_every_n_steps
                .map(steps)
                .or(model.profile_every_n_steps),
            ..defaults
        };
        let case = Self { model: model.into(), data, hyperparameters, trainer, early_stopping };
        case.build()?;
        Ok(case)
    }

    /// The trainer's options under `precision`.
    ///
    /// # Errors
    /// When one of them is out of range, or not for this precision.
    pub fn trainer(&self, precision: Precision) -> Result<TrainerConfig> {
        let config = TrainerConfig { precision, ..self.trainer.clone() };
        config.check()?;
        Ok(config)
    }

    /// The model with the seed's initial weights.
    ///
    /// # Errors
    /// When a hyperparameter is unknown or out of range.
    pub fn build(&self) -> Result<Box<dyn LightningModule>> {
        let _section = random::seeded(self.trainer.seed)?;
        (self.model.build)(&self.hyperparameters)
    }
}
