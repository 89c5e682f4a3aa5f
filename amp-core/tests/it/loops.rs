//! Tests how long runs train, and when and on which sets they validate. The expected numbers of
//! steps were counted by hand.

use std::time::Duration;

use amp_core::{
    LightningModule, Result, Trainer, TrainerConfig,
    callback::{EarlyStopping, Mode, ModelCheckpoint},
    data::{AnyBatch, Batch, DataModule, Limit, Sets},
    event::Event,
    nn::{self, Linear},
    optim::{AdamW, Interval, OptimizerConfig, ReduceLrOnPlateau, Sgd},
    precision::Precision,
    tch::{Device, Kind, Tensor},
    trainer::{Loops, ValCheckInterval, parse_time},
};
use rstest::rstest;

use crate::support::{
    device, message,
    model::{Model, constant, fit, linear, same},
    seeded,
};

/// A model that consists of one linear layer.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Affine {
    #[layer(linear(3, 3))]
    body: Linear,
}

fn model() -> Result<Model> {
    Ok(Model::regression(linear(3, 3)?, |_| {
        OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() })
    }))
}

fn config(max_epochs: i64, loops: Loops) -> TrainerConfig {
    TrainerConfig { max_epochs, loops, ..TrainerConfig::new(Precision::Bf16Mixed, device()) }
}

/// Returns ten batches with two examples each.
fn ten() -> Result<DataModule> {
    same(constant(20, 3, 1.0)?, 2)
}

/// Returns the course of the run as one line. `.` is a batch, `v` is a validation within an epoch,
/// `|` is the end of an epoch, `V|` is the end of an epoch with a validation, and `!` is the point
/// at which the run was stopped.
fn timeline(events: &[Event]) -> String {
    let part = |event: &Event| match event {
        Event::Batch { .. } => ".",
        Event::Validated(_) => "v",
        Event::EpochEnd(end) if end.val.is_empty() => "|",
        Event::EpochEnd(_) => "V|",
        Event::Stopped { .. } => "!",
        _ => "",
    };
    events.iter().map(part).collect()
}

fn run(config: &TrainerConfig, data: &DataModule) -> Result<String> {
    let _generator = seeded(0);
    let (events, record) = fit(config, &mut model()?, data);
    record?;
    Ok(timeline(&events))
}

/// The options mean the same as in Lightning. A fraction is a fraction of the batches of an epoch.
/// A whole number is a number of optimizer steps of the run.
#[rstest]
#[case::epoch_ends(Loops::default(), "..........V|..........V|")]
#[case::quarters(
    Loops { val_check_interval: ValCheckInterval::Fraction(0.25), ..Loops::default() },
    "..v..v..v..v..V|..v..v..v..v..V|"
)]
#[case::thirds(
    Loops { val_check_interval: ValCheckInterval::Fraction(0.34), ..Loops::default() },
    "...v...v...v.|...v...v...v.|"
)]
#[case::steps(
    Loops { val_check_interval: ValCheckInterval::Steps(4), ..Loops::default() },
    "....v....v..|..v....v....V|"
)]
#[case::more_steps_than_an_epoch(
    Loops { val_check_interval: ValCheckInterval::Steps(15), ..Loops::default() },
    "..........|.....v.....|"
)]
#[case::never(
    Loops { val_check_interval: ValCheckInterval::Never, ..Loops::default() },
    "..........|..........|"
)]
#[case::every_second_epoch(
    Loops { check_val_every_n_epoch: 2, ..Loops::default() },
    "..........|..........V|"
)]
#[case::limited(
    Loops { limit_train_batches: Limit::Fraction(0.39), ..Loops::default() },
    "...V|...V|"
)]
#[case::nothing_to_validate(
    Loops { limit_val_batches: Limit::Batches(0), ..Loops::default() },
    "..........|..........|"
)]
#[case::tried_out(
    Loops { fast_dev_run: Some(2), min_epochs: 9, ..Loops::default() },
    "..V|"
)]
#[case::overfitting(
    Loops { overfit_batches: Some(Limit::Batches(1)), ..Loops::default() },
    ".V|.V|"
)]
fn validations_follow_the_configured_steps(
    #[case] loops: Loops,
    #[case] expected: &str,
) -> Result<()> {
    assert_eq!(run(&config(2, loops), &ten()?)?, expected);
    Ok(())
}

/// A step over accumulated batches counts as one step. If a validation is due in the middle of a
/// step, it runs after this step. With three batches per step, an epoch of ten batches has four
/// steps.
#[rstest]
#[case(ValCheckInterval::Fraction(0.5), "......v....V|")]
#[case(ValCheckInterval::Steps(3), ".........v.|")]
fn accumulated_batches_are_one_step(
    #[case] val_check_interval: ValCheckInterval,
    #[case] expected: &str,
) -> Result<()> {
    let config = config(1, Loops { val_check_interval, ..Loops::default() })
        .with(|config| config.optimization.accumulate_grad_batches = 3);
    assert_eq!(run(&config, &ten()?)?, expected);
    Ok(())
}

/// A validation interval and the length of a run can be given as times. With an interval of a
/// nanosecond, a validation runs after each step. A run ends when `max_time` or `max_steps` is
/// reached.
#[test]
fn times_and_steps_end_runs() -> Result<()> {
    let every = ValCheckInterval::Time(Duration::from_nanos(1));
    let always = Loops { val_check_interval: every, ..Loops::default() };
    assert_eq!(run(&config(1, always), &same(constant(6, 3, 1.0)?, 2)?)?, ".v.v.v|");
    let at_once = Loops { max_time: Some(Duration::from_nanos(1)), ..Loops::default() };
    // The time limit is already over before the first step, so no step runs.
    assert_eq!(run(&config(2, at_once), &ten()?)?, "!");
    let soon = Loops { max_time: Some(Duration::from_secs(3600)), ..Loops::default() };
    assert_eq!(run(&config(1, soon), &ten()?)?, "..........V|");
    let steps = TrainerConfig { max_steps: Some(13), ..config(5, Loops::default()) };
    assert_eq!(run(&steps, &ten()?)?, "..........V|...V|");
    Ok(())
}

/// If there is no validation set, no validation runs.
#[test]
fn no_validation_set_is_needed() -> Result<()> {
    let data = DataModule::training("examples", constant(20, 3, 1.0)?, 2);
    assert_eq!(run(&config(2, Loops::default()), &data)?, "..........|..........|");
    let missing = Trainer::new(config(1, Loops::default())).validate(&mut model()?, &data);
    assert!(message(missing).contains("`examples` has no examples to validate on"));
    Ok(())
}

/// A validation in the middle of a run gives the same values as a separate validation of a model
/// that was trained up to the same step.
#[test]
fn a_validation_sees_the_model_of_its_step() -> Result<()> {
    let _generator = seeded(0);
    let loops = Loops { val_check_interval: ValCheckInterval::Fraction(0.3), ..Loops::default() };
    let mut trained = model()?;
    let (events, record) = fit(&config(1, loops), &mut trained, &ten()?);
    record?;
    let seen = events.iter().filter_map(|event| match event {
        Event::Validated(validated) => Some((validated.global_step, validated.val[0].value)),
        _ => None,
    });
    let seen: Vec<_> = seen.collect();
    assert_eq!(seen.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6, 9]);
    for (step, value) in seen {
        let mut again = trained_until(step)?;
        let values = Trainer::new(config(1, Loops::default())).validate(&mut again, &ten()?)?;
        assert_eq!((values[0].name.as_str(), values[0].value), ("val_loss", value), "step {step}");
    }
    Ok(())
}

/// Seeds the random generator with 0, trains a new model for `step` steps, and returns the model.
fn trained_until(step: u64) -> Result<Model> {
    amp_core::tch::manual_seed(0);
    let mut model = model()?;
    let config = TrainerConfig { max_steps: Some(step), ..config(1, Loops::default()) };
    Trainer::new(config).fit(&mut model, &ten()?)?;
    Ok(model)
}

/// Early stopping, the saving of the best checkpoint, and the plateau schedule act at each
/// validation, also within an epoch. The learning rate is 0, so the loss never falls. The best
/// checkpoint is therefore that of the first validation. Early stopping has a patience of 2 and
/// ends the run at the third validation.
#[test]
fn callbacks_and_plateau_follow_the_interval() -> Result<()> {
    let _generator = seeded(0);
    let folder = tempfile::tempdir().expect("a folder");
    let loops = Loops { val_check_interval: ValCheckInterval::Fraction(0.2), ..Loops::default() };
    let plateau = ReduceLrOnPlateau { patience: 0, factor: 0.5, ..Default::default() };
    let mut model = Model::regression(linear(3, 3)?, move |_| {
        OptimizerConfig::new(AdamW { lr: 0.0, ..Default::default() })
            .with_scheduler(plateau.clone(), Interval::Epoch)
    });
    let mut events = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        events.push(event.clone());
        Ok(())
    };
    let mut best = ModelCheckpoint::new(folder.path(), "val_loss", Mode::Min)?;
    Trainer::new(config(1, loops))
        .subscribe(&mut listen)
        .callback(EarlyStopping::new("val_loss", Mode::Min).patience(2))
        .callback(&mut best)
        .fit(&mut model, &ten()?)?;
    assert_eq!(timeline(&events), "..v..v..v!|");
    let name = best.best_model_path().and_then(|path| path.file_name()).expect("a checkpoint");
    assert!(name.to_string_lossy().starts_with("epoch=00-step=000002-val_loss="), "{name:?}");
    Ok(())
}

/// A plateau schedule with `mode = max` counts a falling loss as worse, so it halves the learning
/// rate at each validation except the first. Validations run after steps 4, 8, 12, 16 and 20.
#[test]
fn a_plateau_moves_at_each_validation() -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(3, 3)?, |_| {
        let mode = Mode::Max;
        let plateau = ReduceLrOnPlateau { mode, patience: 0, factor: 0.5, ..Default::default() };
        OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() })
            .with_scheduler(plateau, Interval::Epoch)
    });
    let loops = Loops { val_check_interval: ValCheckInterval::Steps(4), ..Loops::default() };
    let (_, record) = fit(&config(2, loops), &mut model, &ten()?);
    let rates: Vec<f64> = record?.epochs.iter().map(|epoch| epoch.lr).collect();
    assert_eq!(rates, [0.1 / 2.0, 0.1 / 8.0]);
    Ok(())
}

/// A callback's request to stop has no effect until the minimum length of the run is reached.
#[rstest]
#[case::epochs(Loops { min_epochs: 3, ..Loops::default() }, "..V|..V|..V|!")]
#[case::steps(Loops { min_steps: 5, ..Loops::default() }, "..V|..V|.!V|")]
#[case::neither(Loops::default(), "..V|..V|!")]
fn early_stopping_waits_for_the_minimum_length(
    #[case] loops: Loops,
    #[case] expected: &str,
) -> Result<()> {
    let _generator = seeded(0);
    let mut model = Model::regression(linear(3, 3)?, |_| {
        OptimizerConfig::new(Sgd { lr: 2f64.powi(-100), ..Default::default() })
    });
    let mut events = Vec::new();
    let mut listen = |event: &Event| -> Result<()> {
        events.push(event.clone());
        Ok(())
    };
    let record = Trainer::new(config(9, loops.clone()))
        .subscribe(&mut listen)
        .callback(EarlyStopping::new("val_loss", Mode::Min).patience(1))
        .fit(&mut model, &same(constant(4, 3, 1.0)?, 2)?)?;
    assert_eq!(timeline(&events), expected);
    let waits = record.notes.iter().filter(|note| note.contains("training continues until"));
    assert_eq!(waits.count(), usize::from(loops != Loops::default()));
    Ok(())
}

/// The sanity validation before training has no effect. Events and weights equal those of a run
/// without it.
#[test]
fn sanity_steps_leave_no_trace() -> Result<()> {
    let checked = Loops { num_sanity_val_steps: 2, ..Loops::default() };
    let mut weights = Vec::new();
    for loops in [checked, Loops::default()] {
        let _generator = seeded(0);
        let mut model = model()?;
        let (events, record) = fit(&config(1, loops), &mut model, &ten()?);
        record?;
        assert_eq!(timeline(&events), "..........V|");
        weights.push(nn::named_tensors(&model).remove(0).1.copy());
    }
    assert_eq!(weights[0], weights[1]);
    Ok(())
}

/// Values of the first validation set are logged under their plain names. To the names of values of
/// a further set, `/` and the name of this set are appended. Two sets with the same name are
/// refused.
#[test]
fn validation_sets_have_names() -> Result<()> {
    let _generator = seeded(0);
    let sets = |value| constant(4, 3, value);
    let data = DataModule::new("examples", sets(1.0)?, sets(1.0)?, 2)
        .with_val("far", sets(100.0)?)
        .with_test(Sets::one(sets(2.0)?).and("far", sets(50.0)?));
    let (_, record) = fit(&config(1, Loops::default()), &mut model()?, &data);
    let end = &record?.epochs[0];
    let names: Vec<&str> = end.val.iter().map(|logged| logged.name.as_str()).collect();
    assert_eq!(names, ["val_loss", "val_loss/far"]);
    assert!(end.value("val_loss/far") > end.value("val_loss"));
    let twice = data.with_val("far", sets(1.0)?);
    let refused = fit(&config(1, Loops::default()), &mut model()?, &twice).1;
    assert!(message(refused).contains("two validation sets of `examples` are called `far`"));
    Ok(())
}

/// Predictions are returned batch by batch and in order, and equal the model's output.
#[test]
fn predictions_are_streamed() -> Result<()> {
    let _generator = seeded(0);
    let input = Tensor::arange(15, (Kind::Float, Device::Cpu)).reshape([5, 3]);
    let target = input.shallow_clone();
    let data = DataModule::training("examples", Batch::new(input.copy(), target)?, 2)
        .with_predict(Batch::new(input.copy(), input.copy())?);
    let mut model = Affine::builder().build()?;
    let (mut rows, mut places) = (Vec::new(), Vec::new());
    let config = TrainerConfig::new(Precision::F32True, device());
    Trainer::new(config).predict(&mut model, &data, &mut |set, index, batch: &AnyBatch| {
        places.push((set.to_owned(), index, batch.len()));
        rows.push(batch.required("output")?.to_device(Device::Cpu));
        Ok(())
    })?;
    let places: Vec<_> = places.iter().map(|(set, at, len)| (set.as_str(), *at, *len)).collect();
    assert_eq!(places, [("", 0, 2), ("", 1, 2), ("", 2, 1)]);
    let weights = nn::named_tensors(&model);
    let on_host = |at: usize| weights[at].1.to_device(Device::Cpu);
    let expected = input.matmul(&on_host(0).tr()) + on_host(1);
    assert!(Tensor::cat(&rows, 0).allclose(&expected, 1e-5, 1e-6, false));
    Ok(())
}

/// Invalid options are refused before anything runs.
#[rstest]
#[case(Loops { val_check_interval: ValCheckInterval::Fraction(0.0), ..Loops::default() }, "val_check_interval is 0.0")]
#[case(Loops { val_check_interval: ValCheckInterval::Steps(0), ..Loops::default() }, "val_check_interval is 0:")]
#[case(Loops { check_val_every_n_epoch: 0, ..Loops::default() }, "check_val_every_n_epoch is 0")]
#[case(Loops { limit_val_batches: Limit::Fraction(1.5), ..Loops::default() }, "limit_val_batches is 1.5")]
#[case(Loops { limit_train_batches: Limit::Batches(-1), ..Loops::default() }, "limit_train_batches is -1")]
#[case(Loops { limit_train_batches: Limit::Batches(0), ..Loops::default() }, "no batch to train on")]
#[case(Loops { fast_dev_run: Some(0), ..Loops::default() }, "fast_dev_run is 0")]
fn invalid_options_are_refused(#[case] loops: Loops, #[case] says: &str) -> Result<()> {
    let text = message(fit(&config(1, loops), &mut model()?, &ten()?).1);
    assert!(text.contains(says), "{text}");
    Ok(())
}

/// Validation intervals and times are parsed from text, as it is given on the command line. A
/// parsed interval is displayed as the same text.
#[test]
fn options_are_parsed_from_text() -> Result<()> {
    for (text, interval) in [
        ("0.5", ValCheckInterval::Fraction(0.5)),
        ("1.0", ValCheckInterval::Fraction(1.0)),
        ("1", ValCheckInterval::Steps(1)),
        ("never", ValCheckInterval::Never),
        ("00:10:00", ValCheckInterval::Time(Duration::from_secs(600))),
    ] {
        assert_eq!(text.parse::<ValCheckInterval>()?, interval);
        assert_eq!(interval.to_string(), text);
    }
    assert_eq!(parse_time("01:02:03:04")?.as_secs(), ((24 + 2) * 60 + 3) * 60 + 4);
    for text in ["", "1.5", "-3", "1:2", "00:61:00", "often"] {
        assert!(text.parse::<ValCheckInterval>().is_err(), "{text}");
    }
    Ok(())
}
