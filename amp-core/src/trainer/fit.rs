//! The loop over epochs.

use std::time::Instant;

use super::{TrainerConfig, step::StepRunner};
use crate::{
    LightningModule, Result, Step,
    callback::{Action, Callback, Epoch},
    data::{Batch, DataLoader, DataModule},
    event::{EpochEnd, Event, FitEnd, FitStart},
    hardware::Fingerprint,
    log::{Log, Logged},
    nn::{self, Context},
    optim::TrainingPlan,
};

/// Where events go.
pub(super) type Emit<'a> = dyn FnMut(Event) -> Result<()> + 'a;

pub(super) fn fit(
    config: &TrainerConfig,
    model: &mut dyn LightningModule,
    data: &DataModule,
    callbacks: &mut [Box<dyn Callback + '_>],
    emit: &mut Emit<'_>,
) -> Result<()> {
    let started = Instant::now();
    config.check()?;
    data.check()?;
    let policy = config.policy();
    nn::place(model, policy, &config.islands)?;
    let (train, val) = (data.train.place(policy)?, data.val.place(policy)?);
    let mut loader = DataLoader::new(&train, data.batch_size);
    if config.shuffle {
        loader = loader.shuffled(config.seed);
    }
    let window = config.accumulate_grad_batches;
    let windows = (loader.batches() + window - 1) / window;
    let plan = TrainingPlan {
        max_epochs: config.max_epochs,
        estimated_stepping_batches: windows * config.max_epochs,
    };
    let optimizers = model.configure_optimizers(&plan)?;
    let optimizers = optimizers.build(nn::parameters(model), config.weight_update)?;
    let parameters = optimizers.iter().flat_map(|scheduled| scheduled.optimizer.parameters());
    let parameters = parameters.map(|parameter| parameter.tensor.numel() as i64).sum();
    let notes: Vec<String> = optimizers.iter().filter_map(|s| s.optimizer.note()).collect();
    let mut runner = StepRunner::new(config, optimizers)?;
    emit(Event::FitStart(FitStart {
        model: model.name().to_owned(),
        data: data.name.clone(),
        precision: config.precision,
        seed: config.seed,
        fingerprint: Fingerprint::of(config.device)?,
        hyperparameters: model.hyperparameters(),
        parameters,
        max_epochs: config.max_epochs,
        batches_per_epoch: loader.batches(),
    }))?;
    for text in notes {
        emit(Event::Note { text })?;
    }
    model.on_train_start()?;
    for epoch in 0..config.max_epochs {
        let (train, train_seconds) =
            timed(|| train_epoch(config, model, &loader, epoch, &mut runner, emit))?;
        let lr = runner.lr();
        let (val, val_seconds) =
            timed(|| validate(config, model, &val, data.batch_size, epoch, &runner))?;
        runner.end_epoch(&[train.as_slice(), &val].concat())?;
        let end = EpochEnd {
            epoch,
            global_step: runner.global_step(),
            lr,
            train,
            val,
            train_seconds,
            val_seconds,
        };
        emit(Event::EpochEnd(end.clone()))?;
        if act(callbacks, &Epoch { model, precision: config.precision, end: &end }, emit)? {
            break;
        }
    }
    model.on_train_end()?;
    emit(Event::FitEnd(FitEnd {
        global_step: runner.global_step(),
        skipped: runner.skipped(),
        scale: runner.scale(),
        seconds: started.elapsed().as_secs_f64(),
    }))
}

/// Lets the callbacks act on an epoch; whether one of them ends the run.
fn act(
    callbacks: &mut [Box<dyn Callback + '_>],
    epoch: &Epoch<'_>,
    emit: &mut Emit<'_>,
) -> Result<bool> {
    let mut stops = false;
    for callback in callbacks {
        for action in callback.on_epoch_end(epoch)? {
            match action {
                Action::Saved(path) => emit(Event::Saved { path })?,
                Action::Stop(reason) => {
                    stops = true;
                    emit(Event::Stopped { reason })?;
                }
            }
        }
    }
    Ok(stops)
}

/// Trains one epoch and returns its values; reading them waits for the device.
fn train_epoch(
    config: &TrainerConfig,
    model: &mut dyn LightningModule,
    loader: &DataLoader<'_>,
    epoch: i64,
    runner: &mut StepRunner<'_>,
    emit: &mut Emit<'_>,
) -> Result<Vec<Logged>> {
    let mut log = Log::default();
    model.on_train_epoch_start(&mut runner.hook(epoch, &mut log))?;
    let window = config.accumulate_grad_batches;
    let batches = loader.batches();
    for (index, batch) in (0_i64..).zip(loader.epoch(epoch.cast_unsigned(), 0)?) {
        let batch = batch?;
        let first = index - index % window;
        let last = (first + window).min(batches) - 1;
        // A mean over the window's examples, whatever the window's true length.
        let examples: i64 = (first..=last).map(|at| loader.batch_len(at)).sum();
        let share = batch.len() as f64 / examples as f64;
        let loss = runner.accumulate(model, &batch, index, share, &mut log, emit)?;
        let stepped = index == last;
        let outcome = match stepped {
            true => Some(runner.step(model, epoch, &mut log, emit)?),
            false => None,
        };
        model.on_train_batch_end(&loss, outcome.as_ref(), &mut runner.hook(epoch, &mut log))?;
        if stepped && let Some(phases) = runner.take_profile() {
            emit(Event::Profiled { epoch, batch: index, phases })?;
        }
        emit(Event::Batch { epoch, batch: index, global_step: runner.global_step() })?;
        if stepped && runner.attempts().is_multiple_of(config.log_every_n_steps.cast_unsigned()) {
            let global_step = runner.global_step();
            emit(Event::Logged { global_step, values: log.step_values()? })?;
        }
    }
    model.on_train_epoch_end(&mut runner.hook(epoch, &mut log))?;
    log.epoch_values()
}

/// Validates on `data` and returns its values.
fn validate(
    config: &TrainerConfig,
    model: &mut dyn LightningModule,
    data: &Batch,
    batch_size: i64,
    epoch: i64,
    runner: &StepRunner<'_>,
) -> Result<Vec<Logged>> {
    let policy = config.policy();
    let context = Context::new(policy, false).with_islands(config.islands.clone());
    let mut log = Log::default();
    let _no_grad = tch::no_grad_guard();
    for (index, batch) in DataLoader::new(data, batch_size).epoch(0, 0)?.enumerate() {
        let _autocast = policy.autocast()?;
        let mut step = Step::new(&context, &mut log, index, runner.global_step());
        model.validation_step(&batch?, &mut step)?;
    }
    model.on_validation_epoch_end(&mut runner.hook(epoch, &mut log))?;
    log.epoch_values()
}

fn timed<T>(body: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let started = Instant::now();
    let value = body()?;
    Ok((value, started.elapsed().as_secs_f64()))
}
