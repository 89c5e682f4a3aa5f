//! What a golden is taken of: a fixture, or a model of one's own.

use std::rc::Rc;

use amp_core::{
    Error, Hyperparameters, LightningModule, Result, TrainerConfig,
    data::DataModule,
    hardware::Fingerprint,
    precision::{Clip, Precision},
    tch::Device,
};
use fixtures::models;

use super::{Spread, file_name};
use crate::case::{Case, Choices, Subject};

/// How a golden is taken.
#[derive(Debug, Clone)]
pub struct Check {
    /// The device by name; `AMP_DEVICE` unless it is set here, else the CPU.
    pub device: Option<String>,
    /// The precisions besides 32-true.
    pub precisions: Vec<Precision>,
    /// The seeds; the first one's figures are kept, all give n and s.
    pub seeds: Vec<u64>,
    /// The spread over machines, where it was recorded; else the tolerances follow from the
    /// golden's own n and s.
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

/// What a golden is taken of, and how. What is not set is the fixture's own, or as said at each
/// setter.
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
    Fixture(&'static str),
    Own { subject: Subject, data: Option<DataModule>, clip: Option<Clip>, accumulate: i64 },
}

/// An own model's epochs, metric and δ unless they are set.
const OWN: (i64, &str, f64) = (3, "val_acc", 0.01);

impl Target {
    /// The model of `fixtures` that is called `name`.
    pub fn fixture(name: &'static str) -> Self {
        Self {
            source: Source::Fixture(name),
            case: None,
            check: Check::default(),
            epochs: None,
            margin: None,
            hyperparameters: Hyperparameters::new(),
        }
    }

    /// A model of one's own, which `build` makes from hyperparameters, with its data.
    pub fn model(
        name: &'static str,
        build: impl Fn(&Hyperparameters) -> Result<Box<dyn LightningModule>> + 'static,
        data: DataModule,
    ) -> Self {
        Self::without_data(name, build).data(data)
    }

    /// A model of one's own whose [`data`](Self::data) follows.
    pub fn without_data(
        name: &'static str,
        build: impl Fn(&Hyperparameters) -> Result<Box<dyn LightningModule>> + 'static,
    ) -> Self {
        let subject = Subject { name, metric: OWN.1, build: Rc::new(build) };
        let source = Source::Own { subject, data: None, clip: None, accumulate: 1 };
        Self { source, ..Self::fixture(name) }
    }

    /// The data of an own model.
    #[must_use]
    pub fn data(mut self, own: DataModule) -> Self {
        if let Source::Own { data, .. } = &mut self.source {
            *data = Some(own);
        }
        self
    }

    /// The validation metric the model is judged by, larger being better; of an own model, where
    /// it is `val_acc` unless it is set.
    #[must_use]
    pub fn metric(mut self, name: &'static str) -> Self {
        if let Source::Own { subject, .. } = &mut self.source {
            subject.metric = name;
        }
        self
    }

    /// Gradient clipping, of an own model.
    #[must_use]
    pub fn gradient_clip(mut self, own: Clip) -> Self {
        if let Source::Own { clip, .. } = &mut self.source {
            *clip = Some(own);
        }
        self
    }

    /// Batches whose gradients are added up to one step, of an own model.
    #[must_use]
    pub fn accumulate_grad_batches(mut self, batches: i64) -> Self {
        if let Source::Own { accumulate, .. } = &mut self.source {
            *accumulate = batches;
        }
        self
    }

    /// Epochs; three for an own model.
    #[must_use]
    pub fn epochs(mut self, epochs: i64) -> Self {
        self.epochs = Some(epochs);
        self
    }

    /// δ, in the metric's own unit; 0.01 for an own model.
    #[must_use]
    pub fn margin(mut self, margin: f64) -> Self {
        self.margin = Some(margin);
        self
    }

    /// How it is taken.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.check = check;
        self
    }

    /// Hyperparameters, over the struct's defaults.
    #[must_use]
    pub fn hyperparameters(mut self, hyperparameters: Hyperparameters) -> Self {
        self.hyperparameters = hyperparameters;
        self
    }

    /// The precisions besides 32-true; 16-mixed and bf16-mixed unless they are set.
    #[must_use]
    pub fn precisions(mut self, precisions: impl IntoIterator<Item = Precision>) -> Self {
        self.check.precisions = precisions.into_iter().collect();
        self
    }

    /// The seeds, of which the first one's figures are kept and all give n and s; 42 to 45 unless
    /// they are set.
    #[must_use]
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = u64>) -> Self {
        self.check.seeds = seeds.into_iter().collect();
        self
    }

    /// What tells this golden from others of the same model: a case of a matrix.
    #[must_use]
    pub fn case(mut self, name: impl ToString) -> Self {
        self.case = Some(name.to_string());
        self
    }

    fn name(&self) -> &'static str {
        match &self.source {
            Source::Fixture(name) => name,
            Source::Own { subject, .. } => subject.name,
        }
    }

    /// The golden's file name without its end.
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

    /// The case, but for its seed, with δ.
    pub(super) fn prototype(&self, device: Device) -> Result<(Case, f64)> {
        Ok(match &self.source {
            Source::Fixture(name) => {
                let model = models::find(name)?;
                let epochs = Some(self.epochs.unwrap_or(model.quick_epochs));
                let set = self.hyperparameters.clone();
                let choices = Choices { epochs, set, ..Choices::default() };
                (Case::new(model, choices, device)?, self.margin.unwrap_or(model.margin))
            }
            Source::Own { subject, data, clip, accumulate } => {
                let data = data.as_ref().ok_or_else(|| {
                    Error::config(format!("{} has no data: give it with `data`", subject.name))
                })?;
                data.check()?;
                let trainer = TrainerConfig {
                    max_epochs: self.epochs.unwrap_or(OWN.0),
                    gradient_clip: clip.map(Clip::validated).transpose()?,
                    accumulate_grad_batches: *accumulate,
                    ..TrainerConfig::new(Precision::F32True, device)
                };
                trainer.check()?;
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
