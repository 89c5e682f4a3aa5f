//! A training run: trains epoch by epoch, and executes the actions that callbacks request.

use std::{
    rc::Rc,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{
    Interruption,
    config::{Loops, TrainerConfig, Validations, show_time},
    evaluate::{Loaders, run_start},
    freeze::Freezing,
    persist::Writer,
    step::{
        Callbacks, Emit, Invariants, Length, Moment, Observers, Optimization, StepState, Steps,
        step_access,
    },
};
use crate::{
    Error, LightningModule, Result,
    callback::{Callback, Epoch},
    checkpoint,
    data::{DataLoader, DataModule},
    event::{EpochEnd, Event, FitEnd, FitStart, Position},
    log::Log,
    nn,
    optim::{Storage, TrainingPlan},
    state::State,
};

/// A training run and its current position.
pub(super) struct Run<'r, 'c> {
    pub(super) config: &'r TrainerConfig,
    pub(super) model: &'r mut dyn LightningModule,
    pub(super) data: &'r DataModule,
    /// The [`Loops`] options, after `fast_dev_run` and `overfit_batches` have changed them.
    pub(super) loops: Loops,
    pub(super) max_epochs: i64,
    pub(super) plan: TrainingPlan,
    pub(super) loader: Rc<DataLoader>,
    pub(super) val: Rc<Loaders>,
    /// The steps after which the run validates.
    pub(super) validations: Validations,
    pub(super) started: Instant,
    /// The training time before the checkpoint from which this run was resumed.
    pub(super) trained_before: Duration,
    /// The time and the run's position at the end of the last validation. `None` before the first
    /// validation.
    pub(super) validated: Option<(Instant, Position)>,
    /// Whether the run has searched for the cause of a non-finite validation loss, which it does at
    /// most once.
    pub(super) explained: bool,
    /// The reason for which a callback has requested the end of the run. The run then ends as soon
    /// as `min_epochs` and `min_steps` are reached. `None` if no callback has requested the end.
    stop: Option<String>,
    /// Whether a signal, a callback or `max_time` has ended the run.
    ended: bool,
    pub(super) interruption: &'r Interruption,
    /// The number of the signal that ended the run. `None` if no signal ended it.
    interrupted: Option<u32>,
    pub(super) freezing: Freezing,
    pub(super) state: StepState<'r>,
    pub(super) steps: Steps,
    pub(super) writer: Writer,
    /// The state of the log before the running step. If the step fails, the run is saved with this
    /// log. `None` if no step is running, or if the run is not saved after an error.
    pub(super) log_before: Option<State>,
    pub(super) observers: Observers<'r, 'c>,
    pub(super) position: Position,
}

/// Whether the run continues (`On`) or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    End,
}

impl<'r, 'c> Run<'r, 'c> {
    /// Checks the configuration, moves the model to its device, and builds the optimizers and
    /// loaders.
    pub(super) fn new(
        config: &'r TrainerConfig,
        model: &'r mut dyn LightningModule,
        data: &'r DataModule,
        callbacks: &'r mut [Box<dyn Callback + 'c>],
        interruption: &'r Interruption,
        emit: &'r mut Emit<'r>,
    ) -> Result<Self> {
        config.check()?;
        data.check()?;
        let (loops, policy) = (config.loops.resolved(), config.policy());
        let max_epochs = if loops.fast_dev_run.is_some() { 1 } else { config.max_epochs };
        nn::place(model, policy, &config.numerics.overrides)?;
        nn::parameters_require_gradients(model)?;
        config.check_changed_in_forward(model)?;
        checkpoint::can_save(model)?;
        let loader = Rc::new(config.train_loader(data)?);
        let batches = loader.batches();
        if batches == 0 {
            return Err(Error::config(format!(
                "no batch to train on: limit_train_batches = {} leaves no batch of `{}`",
                loops.limit_train_batches, data.name
            )));
        }
        let val = match loops.overfit_batches {
            Some(limit) if !data.val.is_empty() => Loaders::overfitting(data, policy, limit)?,
            _ => Loaders::new(data, &data.val, policy, loops.limit_val_batches)?,
        };
        let window = config.optimization.accumulate_grad_batches;
        let plan = config.training_plan(&loader);
        let freezing = Freezing::new(model, &config.optimization.freeze)?;
        let optimizers = model.configure_optimizers(&plan)?;
        let storage =
            Storage { weights: config.numerics.weight_update, moments: config.numerics.moments };
        let optimizers = optimizers.build(nn::parameters(model), storage)?;
        freezing.check_optimizers(&optimizers)?;
        let access = step_access(model, callbacks, config);
        if model.optimizes_manually() {
            config.check_manual(model.name())?;
        }
        let optim = Optimization::new(config, optimizers, access)?;
        let length =
            Length { batches_per_epoch: batches, plan: config.length(batches, max_epochs) };
        let state = StepState::new(config, model, optim, length)?;
        let steps = Steps::new(&state, model)?;
        let callbacks = Callbacks(callbacks);
        callbacks.check()?;
        let invariants = Invariants::new(config, &loops, model, data);
        let observers = Observers { callbacks, emit, invariants, log: Log::default() };
        Ok(Self {
            config,
            model,
            data,
            validations: Validations::new(&loops, batches, window),
            loops,
            max_epochs,
            plan,
            loader,
            val: Rc::new(val),
            started: Instant::now(),
            trained_before: Duration::ZERO,
            validated: None,
            explained: false,
            stop: None,
            ended: false,
            interruption,
            interrupted: None,
            freezing,
            state,
            steps,
            writer: Writer::default(),
            log_before: None,
            observers,
            position: Position::default(),
        })
    }

    /// Trains and validates from the current position to the end of the run.
    pub(super) fn go(mut self, resumed: Option<Position>) -> Result<()> {
        self.start(resumed)?;
        if let Err(error) = self.epochs() {
            self.save_after(&error)?;
            return Err(error);
        }
        self.finish_saving()?;
        self.state.swap_average()?;
        self.model.on_train_end()?;
        (self.observers.emit)(Event::FitEnd(FitEnd {
            global_step: self.state.global_step(),
            skipped: self.state.counts.skipped,
            replayed: self.state.replayed,
            scale: self.state.optim.scale(),
            seconds: self.started.elapsed().as_secs_f64(),
            interrupted: self.interrupted,
        }))
    }

    fn epochs(&mut self) -> Result<()> {
        let mut flow = self.flow()?;
        while flow == Flow::On && self.position.epoch < self.max_epochs {
            flow = self.epoch()?;
        }
        Ok(())
    }

    /// Returns the training time, including the time before the checkpoint from which the run was
    /// resumed.
    pub(super) fn trained_for(&self) -> Duration {
        self.trained_before + self.started.elapsed()
    }

    fn start(&mut self, resumed: Option<Position>) -> Result<()> {
        let optimizers = self.state.optim.scheduled.iter().map(|scheduled| &scheduled.optimizer);
        let trained = optimizers.flat_map(|optimizer| optimizer.parameters().iter());
        let trained = trained.filter(|parameter| parameter.tensor.requires_grad());
        let parameters = trained.map(|parameter| parameter.tensor.numel() as i64).sum();
        let trained_later = self.freezing.trained_later(self.last_position());
        let notes = self.starting_notes();
        (self.observers.emit)(Event::FitStart(FitStart {
            run: run_start(self.config, self.model, self.data, parameters)?,
            trained_later,
            max_epochs: self.max_epochs,
            batches_per_epoch: self.loader.batches(),
            resumed,
        }))?;
        notes.into_iter().try_for_each(|text| (self.observers.emit)(Event::Note { text }))?;
        self.note_whole_numbers()?;
        self.note_misleading_numbers()?;
        if let Some(plan) = self.state.memory.take() {
            self.state.follow_memory_plan(plan, self.observers.emit)?;
        }
        if let Some(text) = self.steps.note.take() {
            (self.observers.emit)(Event::Note { text })?;
        }
        self.model.on_train_start()?;
        let mut hook = self.state.hook(self.position.epoch, &mut self.observers.log);
        self.observers
            .callbacks
            .each(|callback| callback.on_train_start(&mut hook).map(|()| Vec::new()))?;
        self.check_invariants(Moment::Start)?;
        if resumed.is_none() {
            self.check_validation()?;
        }
        self.state.keep_first_good(self.model)
    }

    /// Trains the rest of an epoch, validates if a validation is due, and runs the callbacks.
    fn epoch(&mut self) -> Result<Flow> {
        let epoch = self.position.epoch;
        let (mut flow, train_seconds) = timed(|| self.train())?;
        if self.interrupted.is_some() {
            // If the user gave a file, the run was saved to it at the signal. The resumed run will
            // end this epoch, with its validation and callbacks.
            return Ok(Flow::End);
        }
        // A run that ends within an epoch can be resumed there. For this, keep the sums of logged
        // values without what the hooks below add to them.
        let batches = self.loader.batches();
        let unfinished = match self.position.batch < batches {
            true => Some(self.observers.log.copied(self.config.device)?),
            false => None,
        };
        let mut hook = self.state.hook(epoch, &mut self.observers.log);
        self.model.on_train_epoch_end(&mut hook)?;
        self.observers
            .callbacks
            .each(|callback| callback.on_train_epoch_end(&mut hook).map(|()| Vec::new()))?;
        let global_step = self.state.global_step();
        for (name, media) in self.observers.log.take_media() {
            (self.observers.emit)(Event::Media { global_step, name, media })?;
        }
        let train = self.observers.log.epoch_values()?;
        let profiles = self.state.profiler.take()?;
        profiles
            .into_iter()
            .try_for_each(|profile| (self.observers.emit)(Event::Profiled(profile)))?;
        let lr = self.state.lr;
        if unfinished.is_none() {
            self.state.follow_epoch(epoch)?;
        }
        let due = self.validations.ends_epoch(epoch, unfinished.is_none()) && !self.is_validated();
        let (val, val_seconds) = match due {
            true => timed(|| self.validate())?,
            false => (Vec::new(), 0.0),
        };
        let more_to_come = self.validates();
        let ended_early = unfinished.is_some();
        match unfinished {
            Some(log) => self.observers.log = log,
            None => {
                self.state.optim.end_epoch(&[train.as_slice(), &val].concat(), more_to_come)?;
                self.position = Position { epoch: epoch + 1, batch: 0 };
                self.observers.log = Log::default();
                self.state.end();
            }
        }
        self.check_invariants(Moment::EpochEnds)?;
        let end = EpochEnd { epoch, global_step, lr, train, val, train_seconds, val_seconds };
        (self.observers.emit)(Event::EpochEnd(end.clone()))?;
        let precision = self.state.policy().precision;
        let model = &*self.model;
        let seen = Epoch { model, precision, end: &end, goes_on: false, ended_early, more_to_come };
        let actions = self.observers.callbacks.each(|callback| callback.on_epoch_end(&seen))?;
        self.act(actions)?;
        if self.flow()? == Flow::End {
            flow = Flow::End;
        }
        Ok(flow)
    }

    /// Requests the end of the run for the given reason. The run ends as soon as `min_epochs` and
    /// `min_steps` are reached.
    pub(super) fn stop(&mut self, reason: String) -> Result<()> {
        if self.stop.is_none() && !self.may_stop() {
            let Loops { min_epochs, min_steps, .. } = self.loops;
            let text = format!(
                "{reason}: training continues until {min_epochs} epochs and {min_steps} optimizer \
                 steps have passed"
            );
            (self.observers.emit)(Event::Note { text })?;
        }
        self.stop.get_or_insert(reason);
        Ok(())
    }

    fn may_stop(&self) -> bool {
        self.position.epoch >= self.loops.min_epochs
            && self.state.global_step() >= self.loops.min_steps
    }

    /// Unfreezes the parameters that are to be trained from the current position on, and creates
    /// their optimizer state.
    pub(super) fn unfreeze(&mut self) -> Result<()> {
        let ended = self.freezing.update(self.position.epoch, self.state.global_step());
        if ended.is_empty() {
            return Ok(());
        }
        self.steps.release(&mut self.observers.log)?;
        self.steps.forget_graph(&self.state);
        self.state.extend(self.model)?;
        let text = format!(
            "from epoch {} and step {} on, the run also trains parameters that were frozen \
             before: {}",
            self.position.epoch,
            self.state.global_step(),
            ended.join(", ")
        );
        (self.observers.emit)(Event::Note { text })
    }

    /// Returns whether the run continues after the step or epoch that has just ended.
    pub(super) fn flow(&mut self) -> Result<Flow> {
        if self.ended || self.config.max_steps.is_some_and(|most| self.state.global_step() >= most)
        {
            return Ok(Flow::End);
        }
        if let Some(signal) = self.signal() {
            return self.interrupt(signal);
        }
        let reason = match (self.loops.max_time, &self.stop) {
            (Some(most), _) if self.trained_for() >= most => {
                format!("max_time of {} has passed", show_time(most))
            }
            (_, Some(reason)) if self.may_stop() => reason.clone(),
            _ => return Ok(Flow::On),
        };
        self.ended = true;
        (self.observers.emit)(Event::Stopped { reason })?;
        Ok(Flow::End)
    }
}

impl Run<'_, '_> {
    /// Checks those invariants of training that apply at this moment of the run.
    pub(super) fn check_invariants(&mut self, moment: Moment) -> Result<()> {
        let Self { observers, state, model, steps, .. } = self;
        observers.invariants.at(moment, state, *model, steps.running())
    }

    /// Returns the number of the received signal, if there is one.
    pub(super) fn signal(&self) -> Option<u32> {
        match self.interruption.signal.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal as u32),
        }
    }

    /// Ends the run between two steps because of a signal, and saves the run if the user gave a
    /// file for this.
    fn interrupt(&mut self, signal: u32) -> Result<Flow> {
        (self.ended, self.interrupted) = (true, Some(signal));
        let saved = self.interruption.save_to.clone();
        if let Some(path) = &saved {
            self.steps.release(&mut self.observers.log)?;
            self.save(path.clone(), false)?;
            self.finish_saving()?;
        }
        (self.observers.emit)(Event::Interrupted { signal, saved })?;
        Ok(Flow::End)
    }
}

pub(super) fn timed<T>(body: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let started = Instant::now();
    let value = body()?;
    Ok((value, started.elapsed().as_secs_f64()))
}
