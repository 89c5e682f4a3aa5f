//! Tests of a project's registry, and of the errors that it reports.

use std::{cell::Cell, rc::Rc};

use amp_core::{
    Hyperparameters, Result,
    callback::{Callback, ModelCheckpoint},
    data::{Batch, DataModule, Limit},
    event::Event,
    precision::Precision,
    prelude::*,
    tch::{Device, Kind, Tensor},
};
use amp_verify::{
    DataSet, Model, Project, Registry,
    case::{Case, Choices},
    margins::{Margins, ModelMargin},
    model, project,
    registry::{Changes, Direction, Judge, Length},
    runner::{self, Extras, JudgedBy},
};
use rstest::rstest;
use serde_json::json;

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(adamw, lr = 1e-2)]
struct Line {
    #[hparam(default = 2)]
    input_size: i64,
    #[layer(linear(input_size, 1))]
    head: Linear,
}

/// Returns a data set with 64 training examples and 16 validation examples, from which a model can
/// learn y = x₀ + x₁.
fn sums(batch_size: i64) -> Result<DataModule> {
    let part = |first: i64, count: i64| {
        let x = Tensor::f_arange_start(first, first + 2 * count, (Kind::Float, Device::Cpu))?;
        let x = x.f_remainder(7.0)?.f_view([count, 2])?;
        let y = x.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Float)?;
        Batch::new(x, y)
    };
    Ok(DataModule::new("sums", part(0, 64)?, part(3, 16)?, batch_size))
}

fn registry() -> Registry {
    Registry::new(project!()).data_set(DataSet::new("sums", sums))
}

#[test]
fn the_first_model_is_the_default_and_hidden_ones_are_found_by_name() {
    let other = amp_verify::Model::new("Other", |_| unreachable!("it is not built"));
    let registry = registry().model(model!(Line).judged_by_loss()).model(other.hidden());
    registry.check().expect("a sound registry");
    assert_eq!(registry.find(None).expect("a default").name(), "Line");
    assert_eq!(registry.find(Some("Other")).expect("by name").name(), "Other");
    let listed: Vec<_> = registry.models().map(|model| model.name()).collect();
    assert_eq!(listed, ["Line"]);
}

#[rstest]
#[case::no_models(Registry::new(project!()), "has no models: add one with")]
#[case::two_models(
    registry().model(model!(Line)).model(model!(Line)),
    "two models named `Line`: rename or remove one"
)]
#[case::two_data_sets(
    registry().data_set(DataSet::new("sums", sums)).model(model!(Line)),
    "two data sets named `sums`"
)]
#[case::unknown_data(
    registry().model(model!(Line).data("products")),
    "in `model Line`: unknown data `products`: expected one of sums"
)]
#[case::an_error_as_metric(
    registry().model(model!(Line).metric("val_mae")),
    "in `model Line`: `.metric(\"val_mae\")` declares that higher values are better"
)]
#[case::no_data(Registry::new(project!()).model(model!(Line)), "Line has no data: add a data set")]
fn a_registry_that_cannot_be_is_refused(#[case] registry: Registry, #[case] expected: &str) {
    let error = registry.check().expect_err("a mistake").to_string();
    assert!(error.contains(expected), "`{error}` does not contain `{expected}`");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn an_unknown_model_is_told_from_the_known_ones() {
    let registry = registry().model(model!(Line));
    let error = registry.find(Some("Lime")).expect_err("there is none").to_string();
    assert!(error.contains("unknown model `Lime`: expected one of Line"), "{error}");
}

/// Checks the priority of hyperparameters. Those of the data set replace those of the model. Those
/// from the user's options replace the model's and the data set's.
#[test]
fn hyperparameters_come_from_the_model_then_the_data_then_the_user() {
    let set = DataSet::new("sums", sums).hyperparameters([("input_size", 2), ("classes", 3)]);
    let model = model!(Line).hyperparameters(json!({ "input_size": 5 })).judged_by_loss();
    let registry = Registry::new(project!()).data_set(set).model(model);
    let case = |choices: Choices| {
        let model = registry.find(None).expect("a model");
        Case::new(&registry, model, choices, Device::Cpu)
    };
    let found = case(Choices::default()).expect("a case");
    assert_eq!(found.hyperparameters["input_size"], 2);
    assert_eq!(found.hyperparameters.get("classes"), None, "the model does not name it");
    let mut choices = Choices::default();
    choices.set.insert("input_size".into(), 9.into());
    assert_eq!(case(choices).expect("a case").hyperparameters["input_size"], 9);
    let unknown = Choices { data: Some("products".into()), ..Choices::default() };
    let error = case(unknown).err().expect("there is no such data").to_string();
    assert!(error.contains("unknown data `products`"), "{error}");
    let reversed =
        Case::new(&registry, &model!(Line).score("val_loss"), Choices::default(), Device::Cpu);
    let error = reversed.err().expect("a loss is no score").to_string();
    assert!(error.contains("declare it with `.judged_by_loss()`"), "{error}");
}

#[test]
fn a_margin_is_declared_or_recorded_or_asked_for() {
    let registry = registry().model(model!(Line));
    let margin = |model: &Model| registry.margin(model, &Changes::default(), model.quick());
    let error = margin(&model!(Line)).expect_err("there is none").to_string();
    assert!(error.contains("cargo amp margins --model Line"), "{error}");
    assert_eq!(margin(&model!(Line).margin(0.25)).expect("declared"), 0.25);
}

/// Checks the sign of a regression: it is positive if the value is worse than the baseline's, for
/// metrics of which higher values are better and for those of which lower values are better. Also
/// checks the smallest possible change of a metric and of a loss.
#[test]
fn a_regression_is_what_is_worse() {
    assert_eq!(Direction::HigherIsBetter.regression(0.75, 0.5), 0.25);
    assert_eq!(Direction::LowerIsBetter.regression(0.75, 0.5), -0.25);
    assert_eq!(Judge::higher("val_acc").resolution(4), 0.25);
    assert_eq!(Judge::loss().resolution(4), 0.0);
    assert_eq!(Direction::HigherScoreIsBetter.regression(30.0, 28.0), 2.0);
    assert_eq!(Judge::score("val_psnr").resolution(4), 0.0);
    assert_eq!(model!(Line).score("val_psnr").judge(), Judge::score("val_psnr"));
}

/// Checks by which value `ModelCheckpoint` chooses the best epoch: the metric that the registry
/// declares for the model. If none is declared and the model logs no accuracy, it is the validation
/// loss, and a note says so. If the model does not log the declared metric, the run ends with an
/// error before training.
#[rstest]
#[case::none(model!(Line), Ok(Judge::loss()), 1)]
#[case::loss(model!(Line).judged_by_loss(), Ok(Judge::loss()), 0)]
#[case::unknown(
    model!(Line).metric("val_auc"),
    Err("monitors `val_auc`, but Line does not log `val_auc` at the ends of epochs; Line logs \
        val_loss"),
    0
)]
#[case::of_steps(
    model!(Line).error_metric("train_loss"),
    Err("Line logs val_loss. Declare it with `#[log(train_loss(on_epoch))]`"),
    0
)]
fn epochs_are_judged_by_a_logged_value(
    #[case] model: Model,
    #[case] expected: std::result::Result<Judge, &str>,
    #[case] notes: usize,
) {
    let (registry, folder) = (registry(), tempfile::tempdir().expect("a folder"));
    let choices = Choices { max_steps: Some(2), ..Choices::default() };
    let case = Case::new(&registry, &model, choices, Device::Cpu).expect("a case");
    let given = Rc::new(Cell::new(None));
    let (seen, path) = (given.clone(), folder.path().to_owned());
    let judged_by: JudgedBy = Box::new(move |judge: Judge| {
        seen.set(Some(judge));
        let saved = ModelCheckpoint::new(path, judge.name, judge.direction.mode())?;
        Ok(Box::new(saved) as Box<dyn Callback>)
    });
    let extras = Extras { judged_by: Some(judged_by), is_compared: false, ..Extras::default() };
    let (mut said, mut started) = (0, false);
    let mut listen = |event: &Event| -> Result<()> {
        said += usize::from(!started && matches!(event, Event::Note { .. }));
        started |= matches!(event, Event::FitStart(_));
        Ok(())
    };
    let outcome = runner::run(&case, Precision::F32True, extras, &mut listen);
    match expected {
        Ok(judge) => {
            outcome.expect("a run");
            assert_eq!(given.get(), Some(judge));
            let files = folder.path().read_dir().expect("the folder");
            let names = files.map(|file| file.expect("a file").file_name().into_string());
            let named = |name: &str| name.contains(&format!("-{}=", judge.name));
            assert!(names.flatten().any(|name| named(&name)));
        }
        Err(text) => {
            let error = outcome.expect_err("an unknown value").to_string();
            assert!(error.contains(text), "{error}");
            assert!(!started, "refused before the run");
        }
    }
    assert_eq!(said, notes);
}

/// Checks how the length of a training becomes `max_epochs` and `max_steps` of the trainer. A
/// length in epochs sets `max_epochs`. A length in steps sets `max_steps`, and sets `max_epochs` to
/// enough epochs for these steps and 32 skipped ones. Here, an epoch of 64 examples in batches of 8
/// has 8 steps, or 4 steps if two batches make one step.
#[rstest]
#[case::epochs(model!(Line).epochs(7), Choices::default(), (7, None))]
#[case::steps(model!(Line).steps(100), Choices::default(), (17, Some(100)))]
#[case::of_two_batches(model!(Line).steps(100).accumulate_grad_batches(2), Choices::default(), (33, Some(100)))]
#[case::truncated(model!(Line).steps(100).limit_train_batches(Limit::Batches(4)), Choices::default(), (33, Some(100)))]
#[case::by_choice(model!(Line).epochs(7), Choices { length: Some(Length::Steps(8)), ..Choices::default() }, (5, Some(8)))]
#[case::epochs_instead(model!(Line).steps(9), Choices { length: Some(Length::Epochs(2)), ..Choices::default() }, (2, None))]
#[case::fewer(model!(Line).steps(100), Choices { max_steps: Some(8), ..Choices::default() }, (5, Some(8)))]
#[case::more(model!(Line).steps(8), Choices { max_steps: Some(100), ..Choices::default() }, (17, Some(100)))]
#[case::within_epochs(model!(Line).epochs(7), Choices { max_steps: Some(3), ..Choices::default() }, (7, Some(3)))]
fn a_length_is_the_trainers(
    #[case] model: Model,
    #[case] choices: Choices,
    #[case] expected: (i64, Option<u64>),
) {
    let (registry, model) = (registry(), model.batch_size(8));
    let case = Case::new(&registry, &model, choices, Device::Cpu).expect("a case");
    assert_eq!((case.trainer.max_epochs, case.trainer.max_steps), expected);
}

/// A model whose schedule cannot be built for a run of fewer than 16 steps, because its `step_size`
/// would be 0.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(adamw, lr = 1e-2)]
#[scheduler(step_lr, step_size = plan.estimated_stepping_batches / 16, interval = step)]
struct Stepped {
    #[layer(linear(2, 1))]
    head: Linear,
}

/// Checks that a short run, such as the warm-up before training, builds its schedule for the number
/// of steps of the whole training. The schedule of this model lowers the learning rate after each
/// sixteenth of its steps, so it cannot be built for two steps.
#[test]
fn shorter_runs_have_the_schedule_of_the_whole_run() {
    let (registry, model) = (registry(), model!(Stepped).epochs(4).batch_size(8));
    let case = Case::new(&registry, &model, Choices::default(), Device::Cpu).expect("a case");
    let plan = case.trainer.optimization.plan.expect("a plan");
    assert_eq!((plan.max_epochs, plan.estimated_stepping_batches), (4, 32));
    // `run` first trains on a few batches as a warm-up. It would fail if the schedule were built
    // for the length of the warm-up.
    let extras = Extras { is_compared: false, ..Extras::default() };
    runner::run(&case, Precision::F32True, extras, &mut |_: &Event| Ok(())).expect("a run");
}

#[rstest]
#[case::no_epoch(Length::Epochs(0), "epochs 0: it must be at least 1")]
#[case::no_step(Length::Steps(0), "steps 0: it must be at least 1")]
fn no_length_is_refused(#[case] length: Length, #[case] expected: &str) {
    let choices = Choices { length: Some(length), ..Choices::default() };
    let error = Case::new(&registry(), &model!(Line), choices, Device::Cpu).err();
    assert!(error.expect("no length").to_string().contains(expected));
}

/// Checks the length of the gate's quick tier. By default it is 3 epochs or 100 steps, in the unit
/// of the full length, but at most the full length. A model can declare another length in steps.
#[rstest]
#[case::epochs(model!(Line).epochs(9), "3 epochs")]
#[case::fewer_epochs(model!(Line).epochs(1), "1 epoch")]
#[case::steps(model!(Line).steps(5_000), "100 steps")]
#[case::fewer_steps(model!(Line).steps(1), "1 step")]
#[case::declared(model!(Line).steps(5_000).quick_steps(60), "60 steps")]
#[case::steps_of_epochs(model!(Line).epochs(9).quick_steps(60), "60 steps")]
fn the_quick_tiers_length_is_in_words(#[case] model: Model, #[case] expected: &str) {
    assert_eq!(model.quick().to_string(), expected);
}

/// Checks that a data set whose examples depend on the model receives all hyperparameters of the
/// model, including those with default values.
#[test]
fn a_set_is_as_large_as_the_model_says() {
    let wide = |batch_size: i64, of: &Hyperparameters| -> Result<DataModule> {
        let features = of["input_size"].as_i64().unwrap_or_default();
        let part = |count: i64| {
            let x = Tensor::f_rand([count, features], (Kind::Float, Device::Cpu))?;
            Batch::new(x, Tensor::f_zeros([count, 1], (Kind::Float, Device::Cpu))?)
        };
        Ok(DataModule::new("wide", part(64)?, part(4)?, batch_size))
    };
    let registry = Registry::new(project!()).data_set(DataSet::sized("wide", wide));
    for (set, expected) in [(json!({}), 2), (json!({ "input_size": 5 }), 5)] {
        let set = set.as_object().expect("an object").clone();
        let choices = Choices { set, ..Choices::default() };
        let case = Case::new(&registry, &model!(Line), choices, Device::Cpu).expect("a case");
        let head = case.data.train.head(1).expect("an example");
        let (_, x) = head.tensors().next().expect("a tensor");
        assert_eq!(x.size(), [1, expected]);
    }
}

/// Checks which margin is used. A declared margin holds for the unchanged model at its full length
/// and in the quick tier. A recorded margin holds only for the length and the changes with which it
/// was recorded. At the full length, the quick tier's recorded margin is used if there is no other.
/// If the registry's hyperparameters have changed since a margin was recorded, this margin is an
/// error.
#[test]
fn a_margin_is_of_one_size_and_one_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry =
        Registry::new(Project::new("sums", folder.path())).data_set(DataSet::new("sums", sums));
    let line = || model!(Line).steps(100).quick_steps(10);
    let wide = |width: i64| Changes {
        hyperparameters: json!({ "input_size": width }).as_object().expect("an object").clone(),
        ..Changes::default()
    };
    let recorded = |changes: Changes, steps: u64, margin: f64, width: i64| ModelMargin {
        margin,
        n: 3,
        length: Length::Steps(steps),
        hyperparameters: Some(wide(width).hyperparameters),
        changes,
        spread: Default::default(),
    };
    let of = |model: &Model, changes: &Changes, steps: u64| {
        let length = Length::Steps(steps);
        registry.margin(model, changes, length).map_err(|error| error.to_string())
    };
    let mut margins = Margins::default();
    let write = |margins: &Margins| {
        let text = serde_json::to_string(margins).expect("JSON");
        std::fs::write(folder.path().join("margins.json"), text).expect("a file");
    };
    margins.add("Line", recorded(Changes::default(), 10, 0.5, 2));
    margins.add("Line", recorded(wide(4), 10, 0.1, 4));
    let changes = Changes { length: Some(Length::Steps(10)), ..wide(4) };
    margins.add("Line", recorded(changes, 10, 0.25, 4));
    write(&margins);
    let own = Changes::default();
    assert_eq!(of(&line(), &own, 10), Ok(0.5));
    assert_eq!(of(&line(), &own, 100), Ok(0.5), "the margin of the quick tier");
    assert_eq!(of(&line(), &wide(4), 10), Ok(0.25), "the last one");
    margins.add("Line", recorded(Changes::default(), 100, 0.375, 2));
    margins.add("Line", recorded(Changes::default(), 20, 0.125, 2));
    write(&margins);
    assert_eq!([10, 20, 100].map(|n| of(&line(), &own, n)), [Ok(0.5), Ok(0.125), Ok(0.375)]);
    let declared = line().margin(0.75);
    assert_eq!([10, 20, 100].map(|n| of(&declared, &own, n)), [Ok(0.75), Ok(0.125), Ok(0.75)]);

    let other = of(&declared, &own, 30).expect_err("none of this length");
    assert!(other.contains("Line has no margin for 30 steps"), "{other}");
    let other = of(&declared, &wide(5), 10).expect_err("none of this size");
    assert!(other.contains("Line has no margin for input_size=5"), "{other}");
    let other = of(&line(), &wide(4), 3).expect_err("none of this length");
    assert!(other.contains("input_size=4, 3 steps"), "{other}");
    let grown = line().hyperparameters(json!({ "input_size": 3 }));
    let other = of(&grown, &own, 10).expect_err("of another size");
    assert!(other.contains("(input_size was 2 and is now 3)"), "{other}");
}

/// Checks that margin files of older versions are read. They contain one margin of the unchanged
/// model, and a separate list of margins of the changed model.
#[test]
fn margins_of_older_files_are_read() {
    let entry = |margin: f64| json!({ "margin": margin, "n": 3, "steps": 10, "spread": {} });
    let mut changed = entry(0.25);
    changed["changes"] = json!({ "batch_size": 8, "length": { "steps": 10 } });
    let file = json!({ "models": { "Line": entry(0.5) }, "changed": { "Line": [changed] } });
    let margins: Margins = serde_json::from_value(file).expect("an older file");
    let halved = Changes { batch_size: Some(8), ..Changes::default() };
    let of = |changes: &Changes| {
        margins.of("Line", changes, Length::Steps(10)).map(|entry| entry.margin)
    };
    assert_eq!([of(&Changes::default()), of(&halved)], [Some(0.5), Some(0.25)]);
    let written: Margins =
        serde_json::from_value(serde_json::to_value(&margins).expect("JSON")).expect("a file");
    assert_eq!(written, margins);
}
