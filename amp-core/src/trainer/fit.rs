//! The loop over epochs and batches.

use std::{collections::VecDeque, fs, io::ErrorKind, rc::Rc, time::Instant};

use tch::Tensor;

use super::{
    TrainerConfig,
    graph::{Flight, step_access},
    profile::Phase,
    step::{StepRunner, full_gradients_note},
    window::Examples,
};
use crate::{
    Error, Hook, LightningModule, Result, Step,
    callback::{Action, Callback, Epoch},
    data::{Batch, DataLoader, DataModule},
    event::{EpochEnd, Event, FitEnd, FitStart, Position},
    hardware::Fingerprint,
    log::{Log, Logged},
    nn::{self, Context},
    optim::{Storage, TrainingPlan},
    precision::{Gradients, StepOutcome, Unscaled},
};

/// Where events go.
pub(super) type Emit<'a> = dyn FnMut(Event) -> Result<()> + 'a;

/// The callbacks of a run, called in the order they were added.
pub(super) struct Callbacks<'r, 'c>(pub(super) &'r mut [Box<dyn Callback + 'c>]);

impl Callbacks<'_, '_> {
    fn each(
        &mut self,
        mut call: impl FnMut(&mut dyn Callback) -> Result<Vec<Action>>,
    ) -> Result<Vec<Action>> {
        let mut actions = Vec::new();
        for callback in self.0.iter_mut() {
            actions.extend(call(callback.as_mut())?);
        }
        Ok(actions)
    }

    pub(super) fn on_before_optimizer_step(
        &mut self,
        gradients: &Gradients<Unscaled>,
        hook: &mut Hook<'_>,
    ) -> Result<()> {
        let mut callbacks = self.0.iter_mut();
        callbacks.try_for_each(|callback| callback.on_before_optimizer_step(gradients, hook))
    }
}

/// A run and where it is.
pub(super) struct Run<'r, 'c> {
    pub(super) config: &'r TrainerConfig,
    pub(super) model: &'r mut dyn LightningModule,
    pub(super) data: &'r DataModule,
    loader: Rc<DataLoader>,
    /// Bytes, with the one for validation.
    held_by_loaders: u64,
    pub(super) runner: StepRunner<'r>,
    pub(super) callbacks: Callbacks<'r, 'c>,
    pub(super) emit: &'r mut Emit<'r>,
    pub(super) flight: Flight,
    pub(super) position: Position,
    /// The running epoch's values.
    pub(super) log: Log,
}

/// Whether the run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    On,
    End,
}

impl<'r, 'c> Run<'r, 'c> {
    /// Checks everything, moves the model to its place and builds the optimizers.
    pub(super) fn new(
        config: &'r TrainerConfig,
        model: &'r mut dyn LightningModule,
        data: &'r DataModule,
        callbacks: &'r mut [Box<dyn Callback + 'c>],
        emit: &'r mut Emit<'r>,
    ) -> Result<Self> {
        config.check()?;
        data.check()?;
        nn::place(model, config.policy(), &config.islands)?;
        let shuffle = config.shuffle.then_some(config.seed);
        let loader = Rc::new(data.train_loader(config.policy(), shuffle)?);
        let batches = loader.batches();
        let window = config.accumulate_grad_batches;
        let steps = (batches + window - 1) / window * config.max_epochs;
        let plan = TrainingPlan {
            max_epochs: config.max_epochs,
            estimated_stepping_batches: config
                .max_steps
                .map_or(steps, |most| steps.min(i64::try_from(most).unwrap_or(i64::MAX))),
        };
        let optimizers = model.configure_optimizers(&plan)?;
        let storage = Storage { weights: config.weight_update, moments: config.moments };
        let optimizers = optimizers.build(nn::parameters(model), storage)?;
        let access = step_access(model, callbacks);
        let runner = StepRunner::new(config, optimizers, access)?;
        Ok(Self {
            config,
            model,
            data,
            loader,
            held_by_loaders: 0,
            runner,
            callbacks: Callbacks(callbacks),
            emit,
            flight: Flight::default(),
            position: Position::default(),
            log: Log::default(),
        })
    }

    /// Trains and validates from the present position to the end.
    pub(super) fn go(mut self, resumed: Option<Position>) -> Result<()> {
        let started = Instant::now();
        let val = self.data.val_loader(self.config.policy())?;
        self.held_by_loaders = self.loader.held_bytes() + val.held_bytes();
        self.start(resumed)?;
        let mut flow = self.past_max_steps();
        while flow == Flow::On && self.position.epoch < self.config.max_epochs {
            flow = self.epoch(&val)?;
        }
        self.model.on_train_end()?;
        (self.emit)(Event::FitEnd(FitEnd {
            global_step: self.runner.global_step(),
            skipped: self.runner.counts.skipped,
            replayed: self.flight.replayed,
            scale: self.runner.scale(),
            seconds: started.elapsed().as_secs_f64(),
        }))
    }

    fn start(&mut self, resumed: Option<Position>) -> Result<()> {
        let optimizers = self.runner.optimizers.iter().map(|scheduled| &scheduled.optimizer);
        let trained = optimizers.clone().flat_map(|optimizer| optimizer.parameters().iter());
        let parameters = trained.map(|parameter| parameter.tensor.numel() as i64).sum();
        let notes = optimizers.filter_map(|optimizer| optimizer.note());
        let notes: Vec<String> = notes.chain(full_gradients_note(self.config)).collect();
        (self.emit)(Event::FitStart(FitStart {
            model: self.model.name().to_owned(),
            data: self.data.name.clone(),
            precision: self.config.precision,
            seed: self.config.seed,
            fingerprint: Fingerprint::of(self.config.device)?,
            hyperparameters: self.model.hyperparameters(),
            parameters,
            max_epochs: self.config.max_epochs,
            batches_per_epoch: self.loader.batches(),
            resumed,
        }))?;
        notes.into_iter().try_for_each(|text| (self.emit)(Event::Note { text }))?;
        if let Some(plan) = self.runner.memory.take() {
            self.runner.follow_memory_plan(plan, self.emit)?;
        }
        self.prepare_flight()?;
        self.model.on_train_start()?;
        let mut hook = self.runner.hook(self.position.epoch, &mut self.log);
        self.callbacks.each(|callback| callback.on_train_start(&mut hook).map(|()| Vec::new()))?;
        self.runner.keep_good(self.model)
    }

    /// Trains the rest of an epoch, validates and lets the callbacks act.
    fn epoch(&mut self, val: &DataLoader) -> Result<Flow> {
        let epoch = self.position.epoch;
        let (mut flow, train_seconds) = timed(|| self.train())?;
        // An epoch that ended early is gone on with later: its sums are kept as they are.
        let unfinished = match self.position.batch < self.loader.batches() {
            true => Some(Log::from_state(&self.log.state()?, self.config.device)?),
            false => None,
        };
        let mut hook = self.runner.hook(epoch, &mut self.log);
        self.model.on_train_epoch_end(&mut hook)?;
        self.callbacks
            .each(|callback| callback.on_train_epoch_end(&mut hook).map(|()| Vec::new()))?;
        let train = self.log.epoch_values()?;
        let profiles = self.runner.take_profiles()?;
        profiles.into_iter().try_for_each(|profile| (self.emit)(Event::Profiled(profile)))?;
        let lr = self.runner.lr;
        let (val, val_seconds) = timed(|| self.validate(val))?;
        match unfinished {
            Some(log) => self.log = log,
            None => {
                self.runner.end_epoch(&[train.as_slice(), &val].concat())?;
                self.position = Position { epoch: epoch + 1, batch: 0 };
                self.log = Log::default();
            }
        }
        let global_step = self.runner.global_step();
        let end = EpochEnd { epoch, global_step, lr, train, val, train_seconds, val_seconds };
        (self.emit)(Event::EpochEnd(end.clone()))?;
        let precision = self.runner.policy().precision;
        let seen = Epoch { model: self.model, precision, end: &end };
        let actions = self.callbacks.each(|callback| callback.on_epoch_end(&seen))?;
        if self.act(actions)? == Flow::End {
            flow = Flow::End;
        }
        Ok(flow)
    }

    /// Trains from the present batch to the end of the epoch, or until the run is to end.
    fn train(&mut self) -> Result<Flow> {
        let Position { epoch, batch: first } = self.position;
        if first == 0 {
            let mut hook = self.runner.hook(epoch, &mut self.log);
            self.model.on_train_epoch_start(&mut hook)?;
            self.callbacks
                .each(|callback| callback.on_train_epoch_start(&mut hook).map(|()| Vec::new()))?;
        }
        let loader = self.loader.clone();
        let mut batches = loader.epoch(epoch.cast_unsigned(), first)?;
        // Examples that were read, but not stepped on yet; and where to read on.
        let (mut queue, mut next) = (VecDeque::new(), first);
        let mut actions = Vec::new();
        while self.position.batch < loader.batches() {
            let examples = match queue.pop_front() {
                Some(examples) => Some(examples),
                None => self.read(&loader, &mut batches, &mut next)?,
            };
            match examples {
                Some(examples) if self.may_fly(&examples)? => self.start_step(examples)?,
                Some(examples) if self.flight.is_empty() => {
                    actions.extend(self.step_without_graph(examples)?);
                }
                // It cannot begin before those in flight have ended.
                waiting => {
                    queue.extend(waiting);
                    actions.extend(self.land(&mut queue)?);
                }
            }
            // While the device is at work.
            if queue.is_empty() && !self.flight.is_empty() {
                queue.extend(self.read(&loader, &mut batches, &mut next)?);
            }
            while self.must_land() || (!actions.is_empty() && !self.flight.is_empty()) {
                actions.extend(self.land(&mut queue)?);
            }
            if self.flight.is_empty() {
                if !actions.is_empty() {
                    self.leave_graph()?;
                }
                let flow = self.act(std::mem::take(&mut actions))?;
                if flow == Flow::End || self.past_max_steps() == Flow::End {
                    self.leave_graph()?;
                    return Ok(Flow::End);
                }
            }
        }
        self.leave_graph()?;
        Ok(Flow::On)
    }

    /// Reads the examples of a step; none where the epoch has no more, or no more are to be
    /// stepped on before those in flight have ended.
    fn read(
        &mut self,
        loader: &DataLoader,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
        next: &mut i64,
    ) -> Result<Option<Examples>> {
        let in_flight = self.flight.len();
        let most = self.config.max_steps;
        if *next >= loader.batches()
            || most.is_some_and(|most| self.runner.global_step() + in_flight >= most)
        {
            return Ok(None);
        }
        let attempt = self.runner.counts.attempts + in_flight;
        let profiled = self.config.profile_every_n_steps.map(i64::cast_unsigned);
        if profiled.is_some_and(|every| attempt.is_multiple_of(every)) {
            if in_flight > 0 {
                return Ok(None);
            }
            self.runner.profiler.start(self.position.epoch, *next)?;
        }
        let start = *next;
        let end = (start + self.config.accumulate_grad_batches).min(loader.batches());
        let examples: i64 = (start..end).map(|at| loader.batch_len(at)).sum();
        let mut read = Examples { start, batches: Vec::new(), shares: Vec::new() };
        for batch in batches.take((end - start) as usize) {
            let batch = batch?;
            self.runner.profiler.lap(Phase::Data)?;
            read.shares.push(batch.len() as f64 / examples as f64);
            read.batches.push(batch);
        }
        *next = end;
        Ok(Some(read))
    }

    /// Steps on some examples, kernel by kernel.
    pub(super) fn step_without_graph(&mut self, examples: Examples) -> Result<Vec<Action>> {
        self.leave_graph()?;
        self.runner.plan_memory(self.model, &examples, self.held_by_loaders, self.emit)?;
        self.runner.begin_window()?;
        let Examples { start, batches, shares } = examples;
        let end = start + batches.len() as i64;
        let mut actions = Vec::new();
        for (index, (batch, share)) in (start..).zip(batches.into_iter().zip(shares)) {
            let Self { model, runner, callbacks, emit, log, position, .. } = self;
            let loss = runner.accumulate(*model, batch, index, share, log, *emit)?;
            let outcome = match index + 1 == end {
                true => Some(runner.step(*model, position.epoch, log, callbacks, *emit)?),
                false => None,
            };
            actions.extend(self.end_batch(index, &loss, outcome.as_ref())?);
        }
        self.flight.warmed_up += 1;
        self.position.batch = end;
        Ok(actions)
    }

    /// Lets everybody know of a batch, and of the step if it was the step's last.
    pub(super) fn end_batch(
        &mut self,
        index: i64,
        loss: &Tensor,
        outcome: Option<&StepOutcome>,
    ) -> Result<Vec<Action>> {
        let Self { model, runner, callbacks, emit, log, position, .. } = self;
        let epoch = position.epoch;
        let mut hook = runner.hook(epoch, log);
        model.on_train_batch_end(loss, outcome, &mut hook)?;
        let actions = callbacks.each(|callback| callback.on_train_batch_end(outcome, &mut hook))?;
        let global_step = runner.global_step();
        emit(Event::Batch { epoch, batch: index, global_step })?;
        if outcome.is_some() && self.logs_now() {
            (self.emit)(Event::Logged { global_step, values: self.log.step_values()? })?;
        }
        Ok(actions)
    }

    /// Whether the last step is one whose values are told.
    pub(super) fn logs_now(&self) -> bool {
        self.runner.counts.attempts.is_multiple_of(self.config.log_every_n_steps.cast_unsigned())
    }

    /// Validates and returns the values.
    fn validate(&mut self, loader: &DataLoader) -> Result<Vec<Logged>> {
        let policy = self.runner.policy();
        let context = Context::new(policy, false).with_islands(self.config.islands.clone());
        let mut log = Log::default();
        let _no_grad = tch::no_grad_guard();
        for (index, batch) in loader.epoch(0, 0)?.enumerate() {
            let _autocast = policy.autocast()?;
            let mut step = Step::new(&context, &mut log, index, self.runner.global_step());
            self.model.validation_step(&batch?, &mut step)?;
        }
        let mut hook = self.runner.hook(self.position.epoch, &mut log);
        self.model.on_validation_epoch_end(&mut hook)?;
        log.epoch_values()
    }

    /// Does what callbacks want: saves first, then deletes; whether the run goes on.
    fn act(&mut self, actions: Vec<Action>) -> Result<Flow> {
        let mut flow = Flow::On;
        let mut deleted = Vec::new();
        for action in actions {
            match action {
                Action::Save { path, weights_only } => {
                    self.save(&path, weights_only)?;
                    (self.emit)(Event::Saved { path })?;
                }
                Action::Delete(path) => deleted.push(path),
                Action::Stop(reason) => {
                    flow = Flow::End;
                    (self.emit)(Event::Stopped { reason })?;
                }
            }
        }
        for path in deleted {
            match fs::remove_file(&path) {
                // Somebody else was quicker; it is gone, as was wanted.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                outcome => outcome.map_err(|error| Error::io(&path, error))?,
            }
        }
        Ok(flow)
    }

    fn past_max_steps(&self) -> Flow {
        match self.config.max_steps {
            Some(most) if self.runner.global_step() >= most => Flow::End,
            _ => Flow::On,
        }
    }
}

fn timed<T>(body: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let started = Instant::now();
    let value = body()?;
    Ok((value, started.elapsed().as_secs_f64()))
}
