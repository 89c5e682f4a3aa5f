//! The training loop.

mod config;
mod epoch;
mod evaluate;
mod fit;
mod freeze;
mod ids_among_floats;
mod persist;
mod starting_notes;
mod step;
mod summary;
mod validation;

pub use crate::{
    event::{Interval, MemoryPlan, Phase, Profile, Recovery, Span},
    module::{ManualOptimizer, ManualStep, StepAccess, first_loss},
};
pub use config::{
    AtFloor, Averaging, Check, ChecksConfig, Freeze, Graph, LoggingConfig, Loops, MemoryConfig,
    NonFinite, NumericsConfig, OptimizationConfig, RecoveryConfig, ScaleFloor, TrainerConfig,
    ValCheckInterval, parse_time,
};
pub use persist::Change;
pub use step::Invariant;
pub use summary::{LayerSummary, ModelSummary, StepMemory, show_count};

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
};

use tch::Tensor;

use self::{
    evaluate::{EvaluationStep, Evaluator, Loaders, Show, run_start},
    fit::timed,
};
use crate::{
    Error, Hook, LightningModule, Result,
    callback::Callback,
    data::{AnyBatch, DataModule, Limit, Sets},
    event::{EvaluationStart, Event, Position, Stage, Subscriber, Validated},
    log::{Log, Logged},
    logger::ProgressBar,
    nn, random,
    record::{Recorder, RunRecord},
    tch_panics::returned,
};

/// Trains models and reports events to its subscribers.
pub struct Trainer<'a> {
    config: TrainerConfig,
    subscribers: Vec<&'a mut dyn Subscriber>,
    callbacks: Vec<Box<dyn Callback + 'a>>,
    progress: Option<ProgressBar>,
    resume_from: Option<PathBuf>,
    resume_with: Vec<Change>,
    interruption: Interruption,
}

/// The signal that may end a run early, and the files to which a run is saved if a signal or an
/// error ends it early.
#[derive(Debug, Clone, Default)]
struct Interruption {
    /// The number of the received signal, or 0 if no signal was received.
    signal: Arc<AtomicUsize>,
    /// The file to which the run is saved if a signal ends the run. `None` if the run is then not
    /// saved.
    save_to: Option<PathBuf>,
    /// The file to which the run is saved if the run ends with an error. `None` if the run is then
    /// not saved.
    save_errors_to: Option<PathBuf>,
}

impl<'a> Trainer<'a> {
    /// Creates a trainer without subscribers.
    ///
    /// # Examples
    ///
    /// ```
    /// use amp_core::prelude::*;
    ///
    /// fn train(model: &mut dyn LightningModule, data: &DataModule) -> Result<Option<f64>> {
    ///     let config = TrainerConfig::new(Precision::F32True, Device::Cpu);
    ///     let record = Trainer::new(config.with(|config| config.max_epochs = 3)).fit(model, data)?;
    ///     Ok(record.last("val_loss"))
    /// }
    /// ```
    pub fn new(config: TrainerConfig) -> Self {
        Self {
            config,
            subscribers: Vec::new(),
            callbacks: Vec::new(),
            progress: None,
            resume_from: None,
            resume_with: Vec::new(),
            interruption: Interruption::default(),
        }
    }

    /// Adds a subscriber. Each event reaches the subscribers in the order in which they were added.
    #[must_use]
    pub fn subscribe(mut self, subscriber: &'a mut dyn Subscriber) -> Self {
        self.subscribers.push(subscriber);
        self
    }

    /// Shows a [progress bar](ProgressBar) on standard error while [`fit`](Self::fit) runs. The
    /// last state of the bar remains visible. Use [`subscribe`](Self::subscribe) for a bar with
    /// other options.
    #[must_use]
    pub fn show_progress(mut self) -> Self {
        self.progress = Some(ProgressBar::new());
        self
    }

    /// Continues from a [`checkpoint`](crate::checkpoint) of the same run. Pass the same model,
    /// callbacks and data as for a new run. On the CPU, all losses, metrics and weights after the
    /// checkpoint are bit-identical to those of an uninterrupted run.
    #[must_use]
    pub fn resume_from(mut self, checkpoint: impl Into<PathBuf>) -> Self {
        self.resume_from = Some(checkpoint.into());
        self
    }

    /// Allows the settings in `changes` to differ between the saved run and the resumed run.
    #[must_use]
    pub fn resume_with(mut self, changes: impl IntoIterator<Item = Change>) -> Self {
        self.resume_with = changes.into_iter().collect();
        self
    }

    /// Ends the run after its current step when `signal` is no longer 0. A signal handler or
    /// another thread may store the number of a signal in `signal`. If `save_to` is given, the run
    /// is saved to this file, and [`resume_from`](Self::resume_from) continues from the file.
    /// [`FitEnd::interrupted`](crate::event::FitEnd::interrupted) contains the number of the
    /// signal.
    #[must_use]
    pub fn interrupted_by(mut self, signal: Arc<AtomicUsize>, save_to: Option<PathBuf>) -> Self {
        self.interruption.signal = signal;
        self.interruption.save_to = save_to;
        self
    }

    /// Saves the run to `path` if the run ends with an error. The file contains the state before
    /// the failed step, from which [`resume_from`](Self::resume_from) continues. A note says where
    /// the run was saved or why it could not be saved. The run cannot be saved if the failed step
    /// has begun to change the weights or is still running on the device.
    #[must_use]
    pub fn save_on_error(mut self, path: impl Into<PathBuf>) -> Self {
        self.interruption.save_errors_to = Some(path.into());
        self
    }

    /// Adds a callback. Callbacks run in the order in which they were added. To read a callback's
    /// results after the run, pass `&mut callback`.
    #[must_use]
    pub fn callback(mut self, callback: impl Callback + 'a) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Trains and validates `model` for the configured epochs. The model is moved to the trainer's
    /// device and converted to the dtype of the precision, and keeps this device and dtype after
    /// the run.
    ///
    /// The run takes its random numbers from libtorch's generators, which the whole process shares,
    /// and does not seed the generators. To make a run repeatable while other threads train, begin
    /// a [reproducible section](crate::random::seeded), which seeds the generators, before you
    /// build the model. A run waits as long as another thread is in a reproducible section.
    ///
    /// # Errors
    /// When the configuration is invalid, when the checkpoint is damaged or belongs to another run,
    /// when a step fails, when a step is not finite and the run cannot recover, when the observed
    /// dtypes differ from those of the precision, when an [invariant](Invariant) of training is
    /// violated, or when a subscriber fails.
    pub fn fit(&mut self, model: &mut dyn LightningModule, data: &DataModule) -> Result<RunRecord> {
        let _place = random::place();
        let _kernels = self.config.numerics.kernels.enter();
        let mut recorder = Recorder::default();
        let mut emit = |event: Event| -> Result<()> {
            recorder.on_event(&event)?;
            self.subscribers.iter_mut().try_for_each(|subscriber| subscriber.on_event(&event))?;
            self.progress.as_mut().map_or(Ok(()), |progress| progress.on_event(&event))
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
        returned(|| run.go(resumed))?;
        // The loop reports FitStart as its first event and FitEnd as its last event, so the
        // recorder has the start and the end of the run.
        Ok(recorder.finish().expect("a run that ended has a start and an end"))
    }

    /// Validates `model` once on the validation sets of `data` and returns the logged values, in
    /// the order in which the model logged them. If a set has a name, `/` and this name are
    /// appended to the names of its logged values. The model is moved to the trainer's device and
    /// converted to the dtype of the precision.
    ///
    /// Subscribers first receive [`Event::EvaluationStart`]. Then they receive the same events as
    /// for a validation within [`fit`](Self::fit), with epoch 0 and step 0. At the end they receive
    /// [`Event::EvaluationEnd`].
    ///
    /// # Errors
    /// When the configuration is invalid, there is no validation set, or a step or a subscriber
    /// fails.
    pub fn validate(
        &mut self,
        model: &mut dyn LightningModule,
        data: &DataModule,
    ) -> Result<Vec<Logged>> {
        let limit = self.config.loops.resolved().limit_val_batches;
        let _place = random::place();
        let loaders =
            self.prepare(model, data, &data.val, ("to validate on", "with_val"), limit)?;
        let device = self.config.device;
        let last = |model: &mut dyn LightningModule, log: &mut Log| {
            let (epoch, global_step, scale, optimizers) = (0, 0, None, &[][..]);
            model.on_validation_epoch_end(&mut Hook {
                epoch,
                global_step,
                scale,
                device,
                optimizers,
                log,
            })
        };
        self.report(model, data, Stage::Validate, |evaluator, model, show| {
            evaluator.evaluate(model, EvaluationStep::VALIDATION, &loaders, None, last, show)
        })
    }

    /// Tests `model` once on the test sets of `data`, with the model's `test_step`. Moves the
    /// model, names the values and reports events as [`validate`](Self::validate) does.
    ///
    /// # Errors
    /// When the configuration is invalid, there is no test set, or a step or a subscriber fails.
    pub fn test(
        &mut self,
        model: &mut dyn LightningModule,
        data: &DataModule,
    ) -> Result<Vec<Logged>> {
        let limit = self.config.loops.resolved().limit_test_batches;
        let _place = random::place();
        let loaders = self.prepare(model, data, &data.test, ("to test on", "with_test"), limit)?;
        self.report(model, data, Stage::Test, |evaluator, model, show| {
            evaluator.evaluate(model, EvaluationStep::TEST, &loaders, None, |_, _| Ok(()), show)
        })
    }

    /// Predicts on the prediction sets of `data`, batch by batch and in order. Calls `write` with
    /// the name of the set, the index of the batch in the set, and the predictions on the device.
    /// If a batch does not fit into memory, it is split, and `write` is called once for each part,
    /// always with the index of the whole batch. Subscribers receive the values that the model
    /// logs, as in [`validate`](Self::validate).
    ///
    /// # Errors
    /// When the configuration is invalid, there is no set to predict, or a step, `write` or a
    /// subscriber fails.
    pub fn predict(
        &mut self,
        model: &mut dyn LightningModule,
        data: &DataModule,
        write: &mut dyn FnMut(&str, usize, &AnyBatch) -> Result<()>,
    ) -> Result<()> {
        let limit = self.config.loops.resolved().limit_predict_batches;
        let _place = random::place();
        let loaders =
            self.prepare(model, data, &data.predict, ("to predict", "with_predict"), limit)?;
        self.report(model, data, Stage::Predict, |evaluator, model, show| {
            evaluator.predict(model, &loaders, write, show)
        })
        .map(drop)
    }

    /// Runs an evaluation, reports its events to the subscribers, and returns the logged values.
    fn report(
        &mut self,
        model: &mut dyn LightningModule,
        data: &DataModule,
        stage: Stage,
        run: impl FnOnce(&mut Evaluator, &mut dyn LightningModule, &mut Show<'_>) -> Result<Vec<Logged>>,
    ) -> Result<Vec<Logged>> {
        let trained = nn::parameters(model).into_iter().map(|parameter| parameter.tensor);
        let trained = trained.filter(Tensor::requires_grad).map(|tensor| tensor.numel() as i64);
        let start = run_start(&self.config, model, data, trained.sum())?;
        let _kernels = self.config.numerics.kernels.enter();
        let mut evaluator = Evaluator::new(&self.config, self.config.policy(), 0);
        let mut emit = |event: Event| {
            self.subscribers.iter_mut().try_for_each(|subscriber| subscriber.on_event(&event))
        };
        emit(Event::EvaluationStart(EvaluationStart { stage, run: start }))?;
        let (val, val_seconds) = timed(|| {
            let global_step = 0;
            let mut show = |name, media| emit(Event::Media { global_step, name, media });
            returned(|| run(&mut evaluator, model, &mut show))
        })?;
        if !val.is_empty() {
            let (position, global_step, val) = (Position::default(), 0, val.clone());
            emit(Event::Validated(Validated { position, global_step, val, val_seconds }))?;
        }
        emit(Event::EvaluationEnd { seconds: val_seconds })?;
        Ok(val)
    }

    /// Checks the configuration, moves the model to its device and creates the loaders of `sets`.
    /// If no set has a batch, the error names the purpose of the set, `kind`, such as `to test on`,
    /// and the method of [`DataModule`] that adds such a set, `method`.
    fn prepare(
        &self,
        model: &dyn LightningModule,
        data: &DataModule,
        sets: &Sets,
        (kind, method): (&str, &str),
        limit: Limit,
    ) -> Result<Loaders> {
        self.config.check()?;
        data.check()?;
        let policy = self.config.policy();
        let loaders = Loaders::new(data, sets, policy, limit)?;
        if loaders.is_empty() {
            return Err(Error::config(format!(
                "`{}` has no examples {kind}: add a data set with `DataModule::{method}`, or \
                 raise the limit on the number of batches",
                data.name
            )));
        }
        nn::place(model, policy, &self.config.numerics.overrides)?;
        Ok(loaders)
    }
}
