//! The training loop.

mod config;
mod epoch;
mod evaluate;
mod fit;
mod freeze;
mod ids_among_floats;
mod persist;
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

/// The causes that may end a run early, and the files in which the run is then saved.
#[derive(Debug, Clone, Default)]
struct Interruption {
    /// The number of the received signal, or 0.
    signal: Arc<AtomicUsize>,
    save_to: Option<PathBuf>,
    /// The file in which the run is saved if it ends with an error.
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

    /// Shows a [progress bar](ProgressBar) on standard error while [`fit`](Self::fit) runs, and
    /// leaves the bar's last state there. Use [`subscribe`](Self::subscribe) for a bar with other
    /// options.
    #[must_use]
    pub fn show_progress(mut self) -> Self {
        self.progress = Some(ProgressBar::new());
        self
    }

    /// Continues from a [`checkpoint`](crate::checkpoint) of the same run. On the CPU the following
    /// numbers are bit-identical to the numbers of an uninterrupted run. Pass model, callbacks and
    /// data as for a new run.
    #[must_use]
    pub fn resume_from(mut self, checkpoint: impl Into<PathBuf>) -> Self {
        self.resume_from = Some(checkpoint.into());
        self
    }

    /// Allows these settings of a resumed run to differ from the saved run.
    #[must_use]
    pub fn resume_with(mut self, changes: impl IntoIterator<Item = Change>) -> Self {
        self.resume_with = changes.into_iter().collect();
        self
    }

    /// Ends the run after its current step when `signal` is no longer 0. A signal handler or
    /// another thread may store the number of a signal there. The run is saved at `save_to` if that
    /// is given, and [`resume_from`](Self::resume_from) continues from the saved run.
    /// [`FitEnd::interrupted`](crate::event::FitEnd::interrupted) contains the number.
    #[must_use]
    pub fn interrupted_by(mut self, signal: Arc<AtomicUsize>, save_to: Option<PathBuf>) -> Self {
        self.interruption.signal = signal;
        self.interruption.save_to = save_to;
        self
    }

    /// Saves the run at `path`, in its state before the failed step, if the run ends with an error.
    /// [`resume_from`](Self::resume_from) continues from there. A note says where the run was saved
    /// or why it could not be saved. The run cannot be saved if the failed step has begun to change
    /// the weights or is still running on the device.
    #[must_use]
    pub fn save_on_error(mut self, path: impl Into<PathBuf>) -> Self {
        self.interruption.save_errors_to = Some(path.into());
        self
    }

    /// Adds a callback. Callbacks run in the order in which they were added. Pass `&mut callback`
    /// to read its results afterwards.
    #[must_use]
    pub fn callback(mut self, callback: impl Callback + 'a) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Trains and validates `model` for the configured epochs. The model is moved to the policy's device
    /// and dtype and stays there.
    ///
    /// The run draws from libtorch's generators, which the whole process shares, and does not seed them.
    /// For a run that can be repeated while other threads train, begin a [reproducible
    /// section](crate::random::seeded) before the model is built. The run waits while another thread is
    /// in such a section.
    ///
    /// # Errors
    /// When the configuration is invalid, the checkpoint is damaged or belongs to another run, a
    /// step fails or is not finite and cannot be recovered, the observed dtypes differ from the
    /// precision's, an [invariant](Invariant) of training is violated, or a subscriber fails.
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
        run.go(resumed)?;
        // The loop's first event is FitStart, and its last event is FitEnd.
        Ok(recorder.finish().expect("a run that ended has a start and an end"))
    }

    /// Validates `model` once on the validation sets of `data` and returns the values in order. If
    /// a set is named, the names of its values end in `/name`. The model is moved to the policy's
    /// device and dtype.
    ///
    /// Subscribers first receive [`Event::EvaluationStart`], then the events that a validation
    /// within [`fit`](Self::fit) has, at epoch 0 and step 0, and at the end
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

    /// Tests `model` once on the test sets of `data` with its `test_step`. In other respects it is
    /// like [`validate`](Self::validate).
    ///
    /// # Errors
    /// The errors of [`validate`](Self::validate).
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

    /// Predicts on the prediction sets of `data`, batch by batch and in order. `write` receives the
    /// set's name, the batch's index in the set, and the predictions on the device. If a batch does
    /// not fit into memory, it is predicted in parts, and `write` receives each part with the same
    /// index. Subscribers receive what the model logs, as in [`validate`](Self::validate).
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

    /// Runs an evaluation and reports its events to the subscribers. Returns its values.
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
            run(&mut evaluator, model, &mut |name, media| {
                emit(Event::Media { global_step, name, media })
            })
        })?;
        if !val.is_empty() {
            let (position, global_step, val) = (Position::default(), 0, val.clone());
            emit(Event::Validated(Validated { position, global_step, val, val_seconds }))?;
        }
        emit(Event::EvaluationEnd { seconds: val_seconds })?;
        Ok(val)
    }

    /// Checks the configuration, moves the model to its device and creates the loaders of the sets.
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
                "`{}` has no examples {kind}: add a set with `DataModule::{method}`, or raise the \
                 limit of batches",
                data.name
            )));
        }
        nn::place(model, policy, &self.config.numerics.overrides)?;
        Ok(loaders)
    }
}
