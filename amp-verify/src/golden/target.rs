//! What a golden test trains: a model of a registry, or a model that the test passes together with
//! its data.

use std::sync::Arc;

use amp_core::{
    Error, Hyperparameters, LightningModule, Result, TrainerConfig,
    data::DataModule,
    hardware::Fingerprint,
    precision::{Clip, Precision},
    tch::Device,
};

use super::{Spread, file_name};
use crate::{
    case::{Case, Choices, Subject, counting_loader},
    changes::Changes,
    length::Length,
    registry::{Judge, Model, Registry},
};

/// The options with which a golden (the recorded results of a run) is recorded.
#[derive(Debug, Clone)]
pub struct Check {
    /// The name of the device. If it is `None`, the environment variable `AMP_DEVICE` names the
    /// device. If this variable is not set either, the device is the CPU.
    pub device: Option<String>,
    /// The precisions that are compared with 32-true.
    pub precisions: Vec<Precision>,
    /// The seeds. The golden records the results of the first seed. From all seeds, it records the
    /// number n and the standard deviation s of the differences from 32-true.
    pub seeds: Vec<u64>,
    /// The recorded differences between machines, from which the tolerances are computed. If it is
    /// `None`, [`verify!`](crate::verify) reads the file `NAME.spread.json` next to the golden. If
    /// there is no such file, the tolerances are computed from the differences between seeds in the
    /// golden.
    pub spread: Option<Spread>,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            device: None,
            precisions: vec![Precision::F16Mixed, Precision::Bf16Mixed],
            seeds: (42..46).collect(),
            spread: None,
        }
    }
}

/// The model of a golden test, and the options with which the model is trained. For a registered
/// model, an option that is not set has the registry's value. For any other model, the setter
/// documents the default.
#[derive(Clone)]
pub struct Target {
    source: Source,
    case: Option<String>,
    pub(super) check: Check,
    epochs: Option<i64>,
    margin: Option<f64>,
    hyperparameters: Hyperparameters,
}

#[derive(Clone)]
enum Source {
    Registered { registry: Registry, model: Arc<Model> },
    Own { subject: Subject, data: Option<DataModule>, clip: Option<Clip>, accumulate: i64 },
}

/// The defaults for a model that is not in a registry: the number of epochs, the metric, and the
/// margin.
const OWN: (i64, Judge, f64) = (3, Judge::higher("val_acc"), 0.01);

impl Target {
    /// Selects the model `name` of the registry.
    ///
    /// # Panics
    /// When the registry is invalid, for example because two models have the same name, or has no
    /// model of this name.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::precision::Precision;
    /// use amp_verify::{Registry, golden::Target};
    ///
    /// fn target(registry: Registry) -> Target {
    ///     Target::registered(registry, "Net").epochs(3).precisions([Precision::Bf16Mixed])
    /// }
    /// ```
    pub fn registered(registry: Registry, name: &str) -> Self {
        let found = registry.check().and_then(|()| registry.find(Some(name)).cloned());
        let model = found.unwrap_or_else(|error| panic!("{error}"));
        Self::of(Source::Registered { registry, model })
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            case: None,
            check: Check::default(),
            epochs: None,
            margin: None,
            hyperparameters: Hyperparameters::new(),
        }
    }

    /// Selects a model that is not in a registry. `build` creates the model from hyperparameters.
    /// `data` is the data on which it is trained.
    pub fn model(
        name: &'static str,
        build: impl Fn(&Hyperparameters) -> Result<Box<dyn LightningModule>> + Send + Sync + 'static,
        data: DataModule,
    ) -> Self {
        Self::without_data(name, build).data(data)
    }

    /// Selects a model that is not in a registry. `build` creates the model from hyperparameters.
    /// Before the training, the data must be set with [`data`](Self::data).
    pub fn without_data(
        name: &'static str,
        build: impl Fn(&Hyperparameters) -> Result<Box<dyn LightningModule>> + Send + Sync + 'static,
    ) -> Self {
        let subject = Subject { name, judge: OWN.1, build: Arc::new(build) };
        Self::of(Source::Own { subject, data: None, clip: None, accumulate: 1 })
    }

    /// Sets the data of a model that is not in a registry.
    #[must_use]
    pub fn data(mut self, own: DataModule) -> Self {
        if let Source::Own { data, .. } = &mut self.source {
            *data = Some(own);
        }
        self
    }

    /// Sets the validation metric by which the model is judged. It must be a fraction of which
    /// higher values are better. The default is `val_acc`. This has no effect on a model of a
    /// registry, because the registry names the metric.
    #[must_use]
    pub fn metric(mut self, name: &'static str) -> Self {
        if let Source::Own { subject, .. } = &mut self.source {
            subject.judge = Judge::higher(name);
        }
        self
    }

    /// Judges the model by its validation loss. Use this for a model without a metric. This has no
    /// effect on a model of a registry, because the registry names the value by which the model is
    /// judged.
    #[must_use]
    pub fn judged_by_loss(mut self) -> Self {
        if let Source::Own { subject, .. } = &mut self.source {
            subject.judge = Judge::loss();
        }
        self
    }

    /// Sets gradient clipping for a model that is not in a registry.
    #[must_use]
    pub fn gradient_clip(mut self, own: Clip) -> Self {
        if let Source::Own { clip, .. } = &mut self.source {
            *clip = Some(own);
        }
        self
    }

    /// Sets how many batches make one optimizer step, for a model that is not in a registry.
    #[must_use]
    pub fn accumulate_grad_batches(mut self, batches: i64) -> Self {
        if let Source::Own { accumulate, .. } = &mut self.source {
            *accumulate = batches;
        }
        self
    }

    /// Sets the number of epochs. For a model of a registry, the default is the length of the
    /// gate's quick tier. For any other model, the default is three.
    #[must_use]
    pub fn epochs(mut self, epochs: i64) -> Self {
        self.epochs = Some(epochs);
        self
    }

    /// Sets the margin: how much worse than 32-true you accept a precision to be, in the unit of
    /// the metric. For a model of a registry, the default is the margin in the registry. For any
    /// other model, the default is 0.01.
    #[must_use]
    pub fn margin(mut self, margin: f64) -> Self {
        self.margin = Some(margin);
        self
    }

    /// Sets all options with which the golden (the results to compare with) is recorded.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    /// Sets hyperparameters. They replace the default values of the model's struct.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Hyperparameters) -> Self {
        self.hyperparameters = hyperparameters;
        self
    }

    /// Sets the precisions to compare with 32-true. The default is 16-mixed and bf16-mixed.
    #[must_use]
    pub fn precisions(mut self, precisions: impl IntoIterator<Item = Precision>) -> Self {
        self.check.precisions = precisions.into_iter().collect();
        self
    }

    /// Sets the seeds. The default is 42 to 45. The results of the first seed are recorded. All
    /// seeds together give the statistics of the differences from 32-true.
    #[must_use]
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = u64>) -> Self {
        self.check.seeds = seeds.into_iter().collect();
        self
    }

    /// Appends `name` to the file name of the recorded results. Several tests of the same model
    /// need different file names, and so do the cases of a parametrized test.
    #[must_use]
    pub fn case(mut self, name: impl ToString) -> Self {
        self.case = Some(name.to_string());
        self
    }

    fn name(&self) -> &'static str {
        match &self.source {
            Source::Registered { model, .. } => model.name(),
            Source::Own { subject, .. } => subject.name,
        }
    }

    /// Returns the file name of the recorded results (the golden) without its extension.
    pub(super) fn file_name(&self, fingerprint: Option<&Fingerprint>) -> String {
        let name = file_name(self.name(), fingerprint);
        match &self.case {
            None => name,
            Some(case) => {
                let case = case.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
                format!("{name}_{case}")
            }
        }
    }

    /// Builds the case (the model with its data and options) that the golden test trains, and
    /// returns it together with the margin. The caller must still set the seed.
    pub(super) fn prototype(&self, device: Device) -> Result<(Case, f64)> {
        Ok(match &self.source {
            Source::Registered { registry, model } => {
                let length = self.epochs.map_or(model.quick(), Length::Epochs);
                let set = self.hyperparameters.clone();
                let changes = Changes { hyperparameters: set.clone(), ..Changes::default() };
                let choices = Choices { length: Some(length), set, ..Choices::default() };
                let margin =
                    self.margin.map_or_else(|| registry.margin(model, &changes, length), Ok)?;
                (Case::new(registry, model, choices, device)?, margin)
            }
            Source::Own { subject, data, clip, accumulate } => {
                let data = data.as_ref().ok_or_else(|| {
                    Error::config(format!("{} has no data: set it with `data`", subject.name))
                })?;
                data.check()?;
                let mut trainer = TrainerConfig::new(Precision::F32True, device).with(|config| {
                    config.max_epochs = self.epochs.unwrap_or(OWN.0);
                    config.optimization.gradient_clip = *clip;
                    config.optimization.accumulate_grad_batches = *accumulate;
                });
                trainer.check()?;
                trainer.optimization.plan = Some(trainer.training_plan(&counting_loader(data)?));
                let case = Case {
                    model: subject.clone(),
                    data: data.clone(),
                    hyperparameters: self.hyperparameters.clone(),
                    trainer,
                    early_stopping: None,
                };
                (case, self.margin.unwrap_or(OWN.2))
            }
        })
    }
}
