//! What is run: a model, its data and the options that all precisions share.

use amp_core::{
    Error, Hyperparameters, LightningModule, Result,
    data::{DataModule, Loading},
    hardware::seed_everything,
    precision::Clip,
    tch::Device,
};
use fixtures::{data::DataKind, models::Model};

use crate::diagnose::Islands;

/// A model with everything but the precision decided.
#[derive(Clone)]
pub struct Case {
    /// The model's entry.
    pub model: &'static Model,
    /// The loaded data.
    pub data: DataModule,
    /// Where it runs.
    pub device: Device,
    /// Hyperparameters, merged: the entry's, the data's, the user's.
    pub hyperparameters: Hyperparameters,
    /// Epochs.
    pub epochs: i64,
    /// Seed of weights, order and dropout.
    pub seed: u64,
    /// Gradient clipping.
    pub clip: Option<Clip>,
    /// Batches whose gradients are added up to one step.
    pub accumulate_grad_batches: i64,
    /// The value that ends training when it no longer falls, and for how many epochs.
    pub early_stopping: Option<(String, u32)>,
    /// Precision regions by module path, over those the model declares.
    pub islands: Islands,
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
        let seed = choices.seed;
        let case = Self {
            model,
            data,
            device,
            hyperparameters,
            epochs,
            seed,
            clip,
            accumulate_grad_batches,
            early_stopping,
            islands: Islands::new(),
        };
        case.build()?;
        Ok(case)
    }

    /// The model with the seed's initial weights.
    ///
    /// # Errors
    /// When a hyperparameter is unknown or out of range.
    pub fn build(&self) -> Result<Box<dyn LightningModule>> {
        seed_everything(self.seed)?;
        self.model.build(&self.hyperparameters)
    }
}
