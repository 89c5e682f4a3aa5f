//! A case: a model, its data and the options that all precisions share.

use std::sync::Arc;

use amp_core::{
    Error, Hyperparameters, LightningModule, Result, TrainerConfig,
    data::{DataModule, Loading},
    precision::{Clip, Precision},
    random,
    tch::Device,
    trainer::{
        ChecksConfig, Graph, LoggingConfig, MemoryConfig, NumericsConfig, OptimizationConfig,
        RecoveryConfig,
    },
};

use crate::registry::{Build, Judge, Model, Registry};

/// A model before it is built.
#[derive(Clone)]
pub struct Subject {
    /// Its name.
    pub name: &'static str,
    /// The validation value it is judged by.
    pub judge: Judge,
    /// How it is built.
    pub build: Arc<Build>,
}

impl From<&Model> for Subject {
    fn from(model: &Model) -> Self {
        Self { name: model.name, judge: model.judge, build: Arc::clone(&model.build) }
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
    /// The trainer's options, for the baseline. Its seed is also used for weights and dropout.
    pub trainer: TrainerConfig,
    /// The value that ends training when it no longer falls, and for how many epochs.
    pub early_stopping: Option<(String, u32)>,
}

/// The user's choices for a case; `None` keeps the model's default.
#[derive(Debug, Default)]
pub struct Choices {
    /// The data set by name.
    pub data: Option<String>,
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
    /// Which steps are logged, and profiled where that is not left to the model.
    pub logging: LoggingConfig,
    /// How the loss is scaled, and in which formats weights, optimizer state and gradients are kept.
    pub numerics: NumericsConfig,
    /// What happens to steps whose gradients are not finite.
    pub recovery: RecoveryConfig,
    /// How much memory a run may take.
    pub memory: MemoryConfig,
    /// Whether whole steps run as CUDA graphs.
    pub graph: Graph,
    /// Which invariants of training a run is held against.
    pub checks: ChecksConfig,
    /// The value to watch, and for how many epochs.
    pub early_stopping: Option<(String, u32)>,
    /// Hyperparameters by name.
    pub set: Hyperparameters,
    /// How batches reach the device.
    pub loading: Loading,
}

impl Case {
    /// Loads the data, merges the choices and builds the model once to check that it can be built.
    /// The registry has the data sets.
    ///
    /// # Errors
    /// When the data cannot be loaded or batched, an option is out of range, or a hyperparameter
    /// is unknown.
    pub fn new(
        registry: &Registry,
        model: &Model,
        choices: Choices,
        device: Device,
    ) -> Result<Self> {
        let data_name = match &choices.data {
            Some(name) => name.as_str(),
            None => model.data_name(registry)?,
        };
        let data_set = registry.find_data(data_name)?;
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
        let early_stopping = choices.early_stopping.or_else(|| model.early_stopping.clone());
        let mut hyperparameters = model.hyperparameters.clone();
        data_set.apply(&mut hyperparameters);
        hyperparameters.extend(choices.set);
        let mut data = data_set.load(choices.batch_size.unwrap_or(model.batch_size))?;
        // Reports and goldens name the data as the registry does.
        data_set.name().clone_into(&mut data.name);
        data.loading = choices.loading;
        data.check()?;
        let profile_every_n_steps =
            choices.logging.profile_every_n_steps.or(model.profile_every_n_steps);
        let trainer = TrainerConfig {
            max_epochs: epochs,
            max_steps: choices.max_steps,
            seed: choices.seed,
            graph: choices.graph,
            checks: choices.checks,
            numerics: choices.numerics,
            recovery: choices.recovery,
            memory: choices.memory,
            optimization: OptimizationConfig {
                gradient_clip: clip,
                accumulate_grad_batches,
                freeze: model.freeze.clone(),
                averaging: model.averaging,
            },
            logging: LoggingConfig { profile_every_n_steps, ..choices.logging },
            ..TrainerConfig::new(Precision::F32True, device)
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
