//! A case: a model, its data, and the options that are the same under all precisions.

use std::sync::Arc;

use amp_core::{
    Error, Hyperparameters, LightningModule, Result, TrainerConfig,
    callback::EarlyStopping,
    data::{DataLoader, DataModule, Limit, Loading},
    precision::{Clip, Policy, Precision},
    random,
    tch::Device,
    trainer::{
        ChecksConfig, Graph, LoggingConfig, Loops, MemoryConfig, NumericsConfig,
        OptimizationConfig, RecoveryConfig,
    },
};

use crate::{
    changes::Changes,
    length::Length,
    registry::{Build, Judge, Model, Registry},
};

pub use crate::stopping::Stopping;

/// A registered model that is not built yet: its name, the validation value that measures its
/// quality, and the function that builds it.
#[derive(Clone)]
pub struct Subject {
    /// The name under which the model is registered.
    pub name: &'static str,
    /// The validation value that measures the model's quality.
    pub judge: Judge,
    /// The function that builds the model from hyperparameters.
    pub build: Arc<Build>,
}

impl From<&Model> for Subject {
    fn from(model: &Model) -> Self {
        let Model { name, judge, .. } = *model;
        Self { name, judge, build: Arc::clone(&model.build) }
    }
}

/// A model with its data and all training options except the precision.
#[derive(Clone)]
pub struct Case {
    /// The model to train.
    pub model: Subject,
    /// The loaded data set, with the batch size.
    pub data: DataModule,
    /// The merged hyperparameters, in increasing priority: from the registered model, the data and
    /// the user.
    pub hyperparameters: Hyperparameters,
    /// The trainer's options, with the precision 32-true. [`Case::trainer`] returns them with
    /// another precision. The seed determines the initial weights, the order of examples and
    /// dropout. [`plan`](OptimizationConfig::plan) describes the full run, so that a run that ends
    /// earlier has the learning rates of the full run.
    pub trainer: TrainerConfig,
    /// What early stopping monitors. `None` without early stopping.
    pub early_stopping: Option<Stopping>,
}

/// The user's choices for a [`Case`]: on which data to train, how long, and with which options. If
/// a choice is `None`, the value that the registry declares for the model is used.
#[derive(Debug, Default)]
pub struct Choices {
    /// The name of the data set to train on.
    pub data: Option<String>,
    /// How long to train: a number of epochs or of optimizer steps.
    pub length: Option<Length>,
    /// The number of examples per batch.
    pub batch_size: Option<i64>,
    /// The seed of the weights, the order of examples and dropout.
    pub seed: u64,
    /// The limit to which gradients are clipped.
    pub clip: Option<Clip>,
    /// The number of batches whose gradients are accumulated into one optimizer step.
    pub accumulate_grad_batches: Option<i64>,
    /// The largest number of optimizer steps. Training ends after this number of steps even if
    /// `length` is longer. It also takes the place of the model's own length, if `length` is `None`
    /// and the model's length is a number of steps.
    pub max_steps: Option<u64>,
    /// How many training batches to use in each epoch: a number of batches, or a fraction of all
    /// batches.
    pub limit_train_batches: Option<Limit>,
    /// How many batches of each validation set to use: a number of batches, or a fraction of all
    /// batches.
    pub limit_val_batches: Option<Limit>,
    /// At which steps values are logged, and at which steps the time of each phase is measured. If
    /// the user does not choose when to measure, the interval of the registered model is used.
    pub logging: LoggingConfig,
    /// The options of loss scaling and the dtypes of weights, optimizer state and gradients.
    pub numerics: NumericsConfig,
    /// What the trainer does with steps whose gradients are not finite.
    pub recovery: RecoveryConfig,
    /// The largest memory that the tensors of a run may use. To stay below this limit, the trainer
    /// recomputes layers in the backward pass.
    pub memory: MemoryConfig,
    /// Whether whole training steps run as CUDA graphs.
    pub graph: Graph,
    /// How often the invariants of training are checked (rules that hold in every run, for example
    /// that every weight changes).
    pub checks: ChecksConfig,
    /// The name of the logged value that early stopping monitors. It may end in `:min` or `:max`,
    /// which says whether smaller or larger values are better.
    pub early_stopping: Option<String>,
    /// The number of epochs without improvement of the monitored value after which early stopping
    /// ends training.
    pub patience: Option<u32>,
    /// The values of hyperparameters, by name.
    pub set: Hyperparameters,
    /// How batches are loaded and copied to the device.
    pub loading: Loading,
}

impl From<&Changes> for Choices {
    fn from(changes: &Changes) -> Self {
        let Changes {
            hyperparameters,
            data,
            batch_size,
            length,
            max_steps,
            accumulate_grad_batches,
            gradient_clip_val,
            early_stopping,
            patience,
            limit_train_batches,
            limit_val_batches,
        } = changes.clone();
        Self {
            data,
            length,
            batch_size,
            clip: gradient_clip_val.map(Clip::Norm),
            accumulate_grad_batches,
            max_steps,
            early_stopping,
            patience,
            limit_train_batches,
            limit_val_batches,
            set: hyperparameters,
            ..Self::default()
        }
    }
}

impl Case {
    /// Loads the data set, which must be in `registry`. Merges the user's choices with the values
    /// that are registered for the model. Builds the model once, so that an invalid hyperparameter
    /// is reported here and not during training.
    ///
    /// # Errors
    /// When the data cannot be loaded or batched, an option is out of range, a hyperparameter is
    /// unknown, or the registry declares that lower values of a metric are better although the metric
    /// says that higher ones are, or the other way round.
    pub fn new(
        registry: &Registry,
        model: &Model,
        choices: Choices,
        device: Device,
    ) -> Result<Self> {
        model.judge.check().map_err(|error| error.at(&format!("model {}", model.name)))?;
        let data_name = match &choices.data {
            Some(name) => name.as_str(),
            None => model.data_name(registry)?,
        };
        let data_set = registry.find_data(data_name)?;
        let accumulate_grad_batches =
            choices.accumulate_grad_batches.unwrap_or(model.accumulate_grad_batches);
        if accumulate_grad_batches < 1 {
            return Err(Error::config(format!(
                "accumulate_grad_batches {accumulate_grad_batches}: it must be at least 1"
            )));
        }
        let clip = choices.clip.or(model.gradient_clip_val.map(Clip::Norm));
        let clip = clip.map(Clip::validated).transpose()?;
        let monitor = choices.early_stopping.as_deref();
        let mut early_stopping = Stopping::chosen(model, monitor, choices.patience)?;
        let mut hyperparameters = model.hyperparameters.clone();
        data_set.apply(&mut hyperparameters);
        hyperparameters.extend(choices.set);
        let batch_size = choices.batch_size.unwrap_or(model.batch_size);
        // Builds the model to check the hyperparameters, before data whose size depends on them is
        // loaded, and after any other data is loaded.
        let build = || {
            let _section = random::seeded(choices.seed)?;
            model.build(&hyperparameters)
        };
        let (mut data, built) = match data_set.is_sized() {
            true => {
                let built = build()?;
                (data_set.load_for(batch_size, &built.hyperparameters())?, built)
            }
            false => (data_set.load(batch_size)?, build()?),
        };
        model
            .judge
            .check_declared(built.metric_mode(model.judge.name))
            .map_err(|error| error.at(&format!("model {}", model.name)))?;
        if let Some(stopping) = &mut early_stopping {
            stopping.find_mode(model.judge, built.as_ref());
        }
        // In reports and goldens (recorded results), the data set has the name under which the
        // registry lists it.
        data_set.name().clone_into(&mut data.name);
        data.loading = choices.loading;
        data.check()?;
        let profile_every_n_steps =
            choices.logging.profile_every_n_steps.or(model.profile_every_n_steps);
        let mut trainer = TrainerConfig {
            loops: Loops {
                limit_train_batches: choices
                    .limit_train_batches
                    .unwrap_or(model.limit_train_batches),
                limit_val_batches: choices.limit_val_batches.unwrap_or(model.limit_val_batches),
                ..Loops::default()
            },
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
                plan: None,
            },
            logging: LoggingConfig { profile_every_n_steps, ..choices.logging },
            ..TrainerConfig::new(Precision::F32True, device)
        };
        // `max_steps` takes the place of a model's own number of steps, so it may also lengthen the
        // training.
        let length = match (choices.length, model.length, choices.max_steps) {
            (Some(length), ..) => length,
            (None, Length::Steps(_), Some(steps)) => Length::Steps(steps),
            (None, own, _) => own,
        };
        let loader = counting_loader(&data)?;
        (trainer.max_epochs, trainer.max_steps) = limits(length, &loader, &trainer)?;
        if let Some(most) = choices.max_steps {
            trainer.max_steps = Some(trainer.max_steps.map_or(most, |own| own.min(most)));
        }
        trainer.optimization.plan = Some(trainer.training_plan(&loader));
        Ok(Self { model: model.into(), data, hyperparameters, trainer, early_stopping })
    }

    /// Returns the trainer's options under this precision.
    ///
    /// # Errors
    /// When an option is out of range, or cannot be used with this precision.
    pub fn trainer(&self, precision: Precision) -> Result<TrainerConfig> {
        let config = TrainerConfig { precision, ..self.trainer.clone() };
        config.check()?;
        Ok(config)
    }

    /// Returns the callback for early stopping. Returns `None` if training does not stop early.
    ///
    /// # Errors
    /// When it is unknown whether larger or smaller values are better.
    pub fn stopping(&self) -> Result<Option<EarlyStopping>> {
        self.early_stopping.as_ref().map(Stopping::callback).transpose()
    }

    /// Returns the number of bytes of the copies of the data that a run under this precision keeps in
    /// its own dtype, in addition to the data set. To count their bytes, the copies are made once
    /// more. Returns 0 on CUDA.
    ///
    /// # Errors
    /// When the data cannot be read.
    pub fn copied_bytes(&self, precision: Precision) -> Result<u64> {
        match self.trainer.device.is_cuda() {
            true => Ok(0),
            false => self.data.copied_bytes(Policy::new(precision, self.trainer.device)),
        }
    }

    /// Builds the model. The seed in `trainer` determines the initial weights.
    ///
    /// # Errors
    /// When a hyperparameter is unknown or out of range.
    pub fn build(&self) -> Result<Box<dyn LightningModule>> {
        let _section = random::seeded(self.trainer.seed)?;
        (self.model.build)(&self.hyperparameters)
    }
}

/// Creates a loader that is only used to count the batches of `data`. The loader is on the CPU,
/// because a loader for a GPU may copy the whole data set to the GPU.
pub(crate) fn counting_loader(data: &DataModule) -> Result<DataLoader> {
    data.train_loader(Policy::new(Precision::F32True, Device::Cpu), 0)
}

/// How many skipped steps a run whose length is a number of steps can make up for. Skipped steps do
/// not count towards `max_steps`. `max_epochs` therefore has room for this many additional steps.
const SPARE: u64 = 32;

/// Computes `max_epochs` and `max_steps` of the trainer from the length of the run.
fn limits(
    length: Length,
    loader: &DataLoader,
    trainer: &TrainerConfig,
) -> Result<(i64, Option<u64>)> {
    let at_least_one = |name: &str| Err(Error::config(format!("{name}: it must be at least 1")));
    match length {
        Length::Epochs(epochs) if epochs < 1 => at_least_one(&format!("epochs {epochs}")),
        Length::Epochs(epochs) => Ok((epochs, None)),
        Length::Steps(0) => at_least_one("steps 0"),
        Length::Steps(steps) => {
            let limit = trainer.loops.limit_train_batches.checked("limit_train_batches")?;
            let batches = loader.batches_under(limit);
            let window = trainer.optimization.accumulate_grad_batches;
            // If an epoch has no batch, one batch is assumed here to avoid a division by zero. The
            // trainer later refuses to train on an epoch without a batch.
            let each = (batches.max(1).cast_unsigned()).div_ceil(window.cast_unsigned());
            let epochs = steps.saturating_add(SPARE).div_ceil(each);
            Ok((i64::try_from(epochs).unwrap_or(i64::MAX), Some(steps)))
        }
    }
}
