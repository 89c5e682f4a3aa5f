//! Tests that a run which is resumed from a checkpoint equals a run without interruption.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use amp_core::{
    Hook, Result, Trainer, TrainerConfig,
    callback::{Action, Callback, EarlyStopping, Mode, ModelCheckpoint},
    data::DataModule,
    event::Event,
    loss::cross_entropy,
    nn,
    optim::{Adam, AdamW, Interval, OneCycle, OptimizerConfig, Sgd, StepLr, TrainingPlan},
    precision::{Clip, GradScalerConfig, Precision, StepOutcome},
    record::RunRecord,
    trainer::{AtFloor, ScaleFloor},
};
use rstest::rstest;
use serde_json::Value;
use tempfile::tempdir;

use crate::support::{
    bits::sha256,
    device,
    model::{Counting, Model, constant, demo, digits, linear, same},
    seeded,
};

/// A callback that saves the run after every step, including skipped ones.
struct EveryStep {
    folder: PathBuf,
    saved: usize,
}

impl Callback for EveryStep {
    fn name(&self) -> String {
        "EveryStep".into()
    }

    fn on_train_batch_end(
        &mut self,
        outcome: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        if outcome.is_none() {
            return Ok(Vec::new());
        }
        self.saved += 1;
        Ok(vec![Action::Save { path: file(&self.folder, self.saved), weights_only: false }])
    }
}

pub(crate) fn file(folder: &Path, step: usize) -> PathBuf {
    folder.join(format!("step-{step:03}.safetensors"))
}

type Optimizers = fn(&TrainingPlan) -> OptimizerConfig;

fn one_cycle(plan: &TrainingPlan) -> OptimizerConfig {
    let total_steps = plan.estimated_stepping_batches;
    let schedule = OneCycle { max_lr: 0.01, total_steps, ..Default::default() };
    OptimizerConfig::new(AdamW::default()).with_scheduler(schedule, Interval::Step)
}

fn step_lr(_: &TrainingPlan) -> OptimizerConfig {
    let schedule = StepLr { step_size: 1, gamma: 0.5 };
    let sgd = Sgd { lr: 0.05, momentum: 0.9, ..Default::default() };
    OptimizerConfig::new(sgd).with_scheduler(schedule, Interval::Epoch)
}

pub(crate) fn adam(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Adam { lr: 1e-2, ..Default::default() })
}

fn config(precision: Precision, window: i64) -> TrainerConfig {
    TrainerConfig { max_epochs: 2, ..TrainerConfig::new(precision, device()) }.with(|config| {
        config.optimization.accumulate_grad_batches = window;
        config.logging.log_every_n_steps = 1;
        config.optimization.gradient_clip = Some(Clip::Norm(1.0));
        // With this scaler, the first steps overflow, and the loss scale grows soon after.
        config.numerics.scaler = GradScalerConfig {
            init_scale: if window == 1 { 2f64.powi(24) } else { 2f64.powi(21) },
            growth_interval: 3,
            ..Default::default()
        };
    })
}

fn model(optimizer: Optimizers) -> Result<Model> {
    Ok(Model { model: Box::new(demo(0.3)?), loss: cross_entropy, optimizer: Box::new(optimizer) })
}

fn data() -> Result<DataModule> {
    same(digits(90)?, 16)
}

/// Returns the bits of every tensor of the model as one text.
pub(crate) fn fingerprint(model: &Model) -> String {
    nn::named_tensors(model)
        .iter()
        .map(|(name, tensor, _)| name.clone() + &sha256(tensor))
        .collect()
}

/// Returns an event as JSON without its times. Returns `None` for events that may differ between a
/// resumed run and a run without interruption.
pub(crate) fn comparable(event: &Event) -> Option<Value> {
    if matches!(event, Event::FitStart(_) | Event::Observed(_) | Event::Note { .. }) {
        return None;
    }
    let mut value = serde_json::to_value(event).expect("events are JSON");
    for seconds in ["seconds", "train_seconds", "val_seconds"] {
        value.as_object_mut().expect("an object").remove(seconds);
    }
    Some(value)
}

/// Trains the model. Returns the events and the result of the training run.
pub(crate) fn run(
    trainer: Trainer<'_>,
    model: &mut Model,
    data: &DataModule,
) -> (Vec<Event>, Result<RunRecord>) {
    let events = Rc::new(RefCell::new(Vec::new()));
    let kept = events.clone();
    // The closure is leaked. Its borrow is then `'static` and does not restrict the lifetime of the
    // trainer.
    let listen = Box::leak(Box::new(move |event: &Event| -> Result<()> {
        kept.borrow_mut().push(event.clone());
        Ok(())
    }));
    let record = trainer.subscribe(listen).fit(model, data);
    (events.take(), record)
}

#[rstest]
#[case::f32(Precision::F32True, 1, one_cycle)]
#[case::f32_windows(Precision::F32True, 4, step_lr)]
#[case::f16_mixed(Precision::F16Mixed, 1, one_cycle)]
#[case::f16_mixed_windows(Precision::F16Mixed, 4, adam)]
#[case::bf16_mixed(Precision::Bf16Mixed, 1, step_lr)]
#[case::f16(Precision::F16True, 2, adam)]
#[case::bf16(Precision::Bf16True, 1, adam)]
#[case::f64(Precision::F64True, 1, one_cycle)]
fn resuming_at_any_step_equals_an_uninterrupted_run(
    #[case] precision: Precision,
    #[case] window: i64,
    #[case] optimizer: Optimizers,
) -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let config = config(precision, window);
    let data = data()?;
    let generator = seeded(7);
    let mut straight = model(optimizer)?;
    let mut callback = EveryStep { folder: folder.path().to_owned(), saved: 0 };
    let trainer = Trainer::new(config.clone()).callback(&mut callback);
    let (events, record) = run(trainer, &mut straight, &data);
    let record = record?;
    drop(generator);
    let steps = 2 * 6_usize.div_ceil(window as usize);
    assert_eq!(callback.saved, steps);
    if precision == Precision::F16Mixed {
        assert!(record.end.skipped > 0 && record.end.global_step > 0, "{:?}", record.end);
    }
    for step in 1..=steps {
        // A resumed run begins with another seed, so that its random numbers are right only if the
        // checkpoint restores them.
        let _generator = seeded(100 + step as u64);
        let path = file(folder.path(), step);
        let mut resumed = model(optimizer)?;
        let mut callback = EveryStep { folder: folder.path().join("again"), saved: step };
        fs::create_dir_all(&callback.folder).expect("a folder");
        let trainer = Trainer::new(config.clone()).resume_from(&path).callback(&mut callback);
        let (resumed_events, record) = run(trainer, &mut resumed, &data);
        let _: RunRecord = record?;
        let saved = events.iter().position(|event| *event == Event::Saving { path: path.clone() });
        let rest = &events[saved.expect("it was saved") + 1..];
        let no_saves =
            |event: &&Event| !matches!(event, Event::Saving { .. } | Event::Saved { .. });
        let expected: Vec<_> = rest.iter().filter(no_saves).filter_map(comparable).collect();
        let seen: Vec<_> = resumed_events.iter().filter(no_saves).filter_map(comparable).collect();
        assert_eq!(seen, expected, "after step {step}");
        assert_eq!(fingerprint(&resumed), fingerprint(&straight), "after step {step}");
    }
    Ok(())
}

/// Trains a linear model for one epoch and saves a checkpoint.
pub(crate) fn saved(folder: &Path, config: &TrainerConfig) -> Result<PathBuf> {
    let _generator = seeded(1);
    let mut model = Model::regression(linear(8, 8)?, adam);
    let mut callback = EveryStep { folder: folder.to_owned(), saved: 0 };
    let trainer = Trainer::new(config.clone()).callback(&mut callback);
    let _: RunRecord = run(trainer, &mut model, &same(constant(8, 8, 1.0)?, 2)?).1?;
    Ok(file(folder, 2))
}

pub(crate) fn short(precision: Precision) -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device()) }
}

/// A run is stopped in the middle of an epoch and resumed. It reports the values of the whole
/// epoch, and callbacks continue with their saved state.
#[test]
fn a_run_stopped_in_an_epoch_resumes_in_its_middle() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let data = data()?;
    let checkpoints = || -> Result<ModelCheckpoint> {
        let checkpoint = ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?;
        Ok(checkpoint.save_top_k(1).save_last(true))
    };
    let stopping = || EarlyStopping::new("val_loss", Mode::Min).patience(2).min_delta(100.0);
    let config = TrainerConfig { max_epochs: 5, ..config(Precision::F32True, 1) };
    let straight = {
        let _generator = seeded(3);
        let trainer = Trainer::new(config.clone()).callback(stopping());
        run(trainer, &mut model(adam)?, &data).1?
    };
    assert_eq!(straight.epochs.len(), 3, "nothing improves by 100");
    let first = {
        let _generator = seeded(3);
        let config = TrainerConfig { max_steps: Some(8), ..config.clone() };
        let trainer = Trainer::new(config).callback(stopping()).callback(checkpoints()?);
        run(trainer, &mut model(adam)?, &data).1?
    };
    assert_eq!((first.end.global_step, first.epochs.len()), (8, 2));
    let rest = {
        let _generator = seeded(9);
        let trainer = Trainer::new(config)
            .resume_from(folder.path().join("last.safetensors"))
            .callback(stopping())
            .callback(checkpoints()?);
        run(trainer, &mut model(adam)?, &data).1?
    };
    let values = |record: &RunRecord, at: usize| {
        let epoch = &record.epochs[at];
        (epoch.epoch, epoch.train.clone(), epoch.val.clone(), epoch.lr)
    };
    assert_eq!(rest.start.resumed.map(|at| (at.epoch, at.batch)), Some((1, 2)));
    assert_eq!(values(&rest, 0), values(&straight, 1));
    assert_eq!(
        rest.end.global_step, straight.end.global_step,
        "the steps of the epoch are counted once"
    );
    assert_eq!(values(&rest, 1), values(&straight, 2));
    let best = fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(best, 2, "the folder contains the best file and the last one");
    Ok(())
}

#[test]
fn a_checkpoint_has_the_models_own_state() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let counting = || -> Result<Counting> {
        Ok(Counting { inner: Model::regression(linear(8, 8)?, adam), seen: 0 })
    };
    let data = same(constant(8, 8, 1.0)?, 2)?;
    let mut callback = EveryStep { folder: folder.path().to_owned(), saved: 0 };
    let config = short(Precision::F32True);
    let _: RunRecord =
        Trainer::new(config.clone()).callback(&mut callback).fit(&mut counting()?, &data)?;
    let mut resumed = counting()?;
    let _: RunRecord =
        Trainer::new(config).resume_from(file(folder.path(), 3)).fit(&mut resumed, &data)?;
    assert_eq!(resumed.seen, 4, "three steps before the checkpoint and one after it");
    Ok(())
}

/// If a run has changed to bf16 because of its loss scale, the resumed run continues in bf16.
#[test]
fn a_run_that_fell_back_resumes_in_bf16() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let mut config = config(Precision::F16Mixed, 1);
    config.recovery.scale_floor =
        ScaleFloor { min_scale: 2f64.powi(23), then: AtFloor::FallBackToBf16 };
    let data = data()?;
    let straight = {
        let _generator = seeded(7);
        let mut callback = EveryStep { folder: folder.path().to_owned(), saved: 0 };
        let trainer = Trainer::new(config.clone()).callback(&mut callback);
        let mut model = model(adam)?;
        let record = run(trainer, &mut model, &data).1?;
        assert_eq!(record.recoveries.len(), 1, "{:?}", record.recoveries);
        fingerprint(&model)
    };
    let _generator = seeded(8);
    let mut resumed = model(adam)?;
    let trainer = Trainer::new(config).resume_from(file(folder.path(), 5));
    let record = run(trainer, &mut resumed, &data).1?;
    assert_eq!(record.end.scale, None, "bf16 has no scale");
    assert_eq!(fingerprint(&resumed), straight);
    Ok(())
}

/// A checkpoint contains the paths of the best checkpoints so far. If these files are in another
/// folder or do not exist, a resumed run neither compares with them nor deletes them.
#[test]
fn best_files_of_another_folder_are_kept() -> Result<()> {
    let (one, other) = (tempdir().expect("a folder"), tempdir().expect("a folder"));
    let train = |folder: &Path, epochs: i64, from: Option<&Path>| -> Result<Vec<String>> {
        let _generator = seeded(3);
        let config = TrainerConfig { max_epochs: epochs, ..config(Precision::F32True, 1) };
        let checkpoint = ModelCheckpoint::new(folder, "val_loss", Mode::Min)?.save_last(true);
        let mut trainer = Trainer::new(config).callback(checkpoint);
        if let Some(from) = from {
            trainer = trainer.resume_from(from);
        }
        let _: RunRecord = run(trainer, &mut model(adam)?, &data()?).1?;
        let entries = fs::read_dir(folder).expect("the folder");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<String> =
            entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    };
    let first = train(one.path(), 1, None)?;
    assert_eq!(first.len(), 2, "{first:?}");
    let last = one.path().join("last.safetensors");
    let resumed = train(other.path(), 3, Some(&last))?;
    assert!(resumed.len() == 2 && one.path().join(&first[0]).exists(), "{resumed:?}");
    // The run is resumed twice from one copy of the checkpoint. The first resumed run deletes the
    // best file that the checkpoint names, and saves a better one. The second resumed run must not
    // fail because this file is missing.
    let kept = other.path().join("kept.safetensors.copy");
    fs::copy(&last, &kept).expect("a copy");
    for _ in 0..2 {
        train(one.path(), 3, Some(&kept))?;
    }
    Ok(())
}
