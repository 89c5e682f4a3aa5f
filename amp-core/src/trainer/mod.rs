//! The training loop.

mod checkpoint;
mod config;
mod epoch;
mod evaluate;
mod fit;
mod freeze;
mod resume;
mod saving;
mod step;
mod validation;
mod whole_numbers;
mod writer;

pub use crate::{
    event::{Interval, MemoryPlan, Phase, Profile, Recovery, Span},
    module::{ManualOptimizer, ManualStep, StepAccess},
};
pub use config::{
    AtFloor, Averaging, Check, ChecksConfig, Freeze, Graph, LoggingConfig, Loops, MemoryConfig,
    NonFinite, NumericsConfig, OptimizationConfig, RecoveryConfig, ScaleFloor, TrainerConfig,
    ValCheckInterval, parse_time,
};
pub use resume::Change;
pub use step::Invariant;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
};

use self::evaluate::{Evaluator, Loaders, Stage};
use crate::{
    Error, LightningModule, Result,
    callback::Callback,
    data::{AnyBatch, DataModule, Limit, Sets},
    event::{Event, Subscriber},
    log::Logged,
    nn, random,
    record::{Recorder, RunRecord},
};

/// Trains models and tells its subscribers what happens.
pub struct Trainer<'a> {
    config: TrainerConfig,
    subscribers: Vec<&'a mut dyn Subscriber>,
    callbacks: Vec<Box<dyn Callback + 'a>>,
    resume_from: Option<PathBuf>,
    resume_with: Vec<Change>,
    interruption: Interruption,
}

/// What may end a run early, and where it is saved then.
#[derive(Debug, Clone, Default)]
struct Interruption {
    /// 0, or the number of the signal that has come.
    signal: Arc<AtomicUsize>,
    save_to: Option<PathBuf>,
    /// Where the run is saved when it ends with an error.
    save_errors_to: Option<PathBuf>,
}

impl<'a> Trainer<'a> {
    /// A trainer nobody listens to yet.
    pub fn new(config: TrainerConfig) -> Self {
        Self {
            config,
            subscribers: Vec::new(),
            callbacks: Vec::new(),
            resume_from: None,
            resume_with: Vec::new(),
            interruption: Interruption::default(),
        }
    }

    /// Adds a listener; each event reaches them in the order they were added.
    #[must_use]
    pub fn subscribe(mut self, subscriber: &'a mut dyn Subscriber) -> Self {
        self.subscribers.push(subscriber);
        self
    }

    /// Goes on from a [`checkpoint`](crate::checkpoint) of the same run: the numbers that follow
    /// are those of a run that was never stopped, to the last bit on the CPU. A model, callbacks
    /// and data like those of the run that was saved are given as for a new one.
    #[must_use]
    pub fn resume_from(mut self, checkpoint: impl Into<PathBuf>) -> Self {
        self.resume_from = Some(checkpoint.into());
        self
    }

    /// What a resumed run may have other than the run that was saved. Anything else that would change its
    /// numbers is refused.
    #[must_use]
    pub fn resume_with(mut self, changes: impl IntoIterator<Item = Change>) -> Self {
        self.resume_with = changes.into_iter().collect();
        self
    }

    /// Lets a run be ended from outside: when `signal` is no longer 0, it ends with the step that is
    /// running, is saved at `save_to` where that is given, and has the number as
    /// [`FitEnd::interrupted`](crate::event::FitEnd::interrupted). [`resume_from`](Self::resume_from) goes on
    /// from what was saved. A handler of a signal may set the number; so may another thread.
    #[must_use]
    pub fn interrupted_by(mut self, signal: Arc<AtomicUsize>, save_to: Option<PathBuf>) -> Self {
        self.interruption.signal = signal;
        self.interruption.save_to = save_to;
        self
    }

    /// Saves the run at `path` when it ends with an error, as it was before the step that failed;
    /// [`resume_from`](Self::resume_from) goes on from there. A note says where it was saved, or why that
    /// was not possible: a step that had begun to change the weights cannot be taken back, nor one that
    /// is still running on the device.
    #[must_use]
    pub fn save_on_error(mut self, path: impl Into<PathBuf>) -> Self {
        self.interruption.save_errors_to = Some(path.into());
        self
    }

    /// Adds a callback; after each epoch they act in the order they were added. Give a `&mut` to
    /// ask it something afterwards.
    #[must_use]
    pub fn callback(mut self, callback: impl Callback + 'a) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Trains and validates `model` for the configured epochs. The model is moved to the
    /// policy's device and dtype and stays there.
    ///
    /// The run draws from libtorch's generators, which the whole process shares, and seeds nothing:
    /// begin a [reproducible section](crate::random::seeded) before the model is built for a run
    /// that can be repeated while other threads train. It waits while another thread is in one.
    ///
    /// # Errors
    /// When the configuration cannot be used, the checkpoint is damaged or another run's, a step
    /// fails or is not finite beyond recovery, the observed dtypes are not those of the precision, an
    /// [invariant](Invariant) of training is broken, or a subscriber fails.
    pub fn fit(&mut self, model: &mut dyn LightningModule, data: &DataModule) -> Result<RunRecord> {
        let _place = random::place();
        let mut recorder = Recorder::default();
        let mut emit = |event: Event| -> Result<()> {
            recorder.on_event(&event)?;
            self.subscribers.iter_mut().try_for_each(|subscriber| subscriber.on_event(&event))
        };
        let mut run = fit::Run::new(
            &self.config,
            model,
            data,
            &mut self.callbacks,
            &self.interruption,
            &mut emit,
        )?;
        let resumed = match &self.resume_from {
            Some(path) => Some(run.resume(path, &self.resume_with)?),
            None => None,
        };
        run.go(resumed)?;
        // The loop's last event is FitEnd, its first FitStart.
        Ok(recorder.finish().expect("a run that ended has a start and an end"))
    }

    /// Validates `model` once on the validation sets of `data`, and returns the values in order: those
    /// of a set with a name end in `/name`. The model is moved to the policy's device and dtype.
    ///
    /// # Errors
    /// When the configuration cannot be used, there is no validation set or a step fails.
    pub fn validate(
        &mut self,
        model: &mut dyn LightningModule,
        data: &DataModule,
    ) -> Result<Vec<Logged>> {
        let limit = self.config.loops.resolved().limit_val_batches;
        self.evaluate(model, data, Stage::Validate, limit)
    }

    /// Tests `model` once on the test sets of `data`, by its `test_step`; otherwise as
    /// [`validate`](Self::validate).
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn test(
        &mut self,
        model: &mut dyn LightningModule,
        data: &DataModule,
    ) -> Result<Vec<Logged>> {
        let limit = self.config.loops.resolved().limit_test_batches;
        self.evaluate(model, data, Stage::Test, limit)
    }

    /// Gives what `model` predicts for the sets to predict of `data` to `write`, a batch at a time and
    /// in order: the set's name, the batch's index in it, and the predictions on the device. A batch that
    /// does not fit into memory comes in parts under one index.
    ///
    /// # Errors
    /// When the configuration cannot be used, there is no set to predict, or a step or `write` fails.
    pub fn predict(
        &mut self,
        model: &mut dyn LightningModule,
        data: &DataModule,
        write: &mut dyn FnMut(&str, usize, &AnyBatch) -> Result<()>,
    ) -> Result<()> {
        let _place = random::place();
        let limit = self.config.loops.resolved().limit_predict_batches;
        let loaders = self.prepare(model, data, &data.predict, "to predict", limit)?;
        Evaluator::new(&self.config, self.config.policy(), 0).predict(model, &loaders, write)
    }

    fn evaluate(
        &self,
        model: &mut dyn LightningModule,
        data: &DataModule,
        stage: Stage,
        limit: Limit,
    ) -> Result<Vec<Logged>> {
        let _place = random::place();
        let (sets, kind) = match stage {
            Stage::Validate => (&data.val, "to validate on"),
            Stage::Test => (&data.test, "to test on"),
        };
        let loaders = self.prepare(model, data, sets, kind, limit)?;
        let mut evaluator = Evaluator::new(&self.config, self.config.policy(), 0);
        evaluator.evaluate(model, stage, &loaders, None, |_, _| Ok(()))
    }

    /// Checks everything, moves the model to its place and opens the sets.
    fn prepare(
        &self,
        model: &dyn LightningModule,
        data: &DataModule,
        sets: &Sets,
        kind: &str,
        limit: Limit,
    ) -> Result<Loaders> {
        self.config.check()?;
        data.check()?;
        let policy = self.config.policy();
        let loaders = Loaders::new(data, sets, policy, limit)?;
        if loaders.is_empty() {
            return Err(Error::config(format!(
                "`{}` has no examples {kind}: give it a set, or raise the limit of batches",
                data.name
            )));
        }
        nn::place(model, policy, &self.config.numerics.overrides)?;
        Ok(loaders)
    }
}
