//! A registry as a project declares it, and what it refuses.

use amp_core::{
    Result,
    data::{Batch, DataModule},
    prelude::*,
    tch::{Device, Kind, Tensor},
};
use amp_verify::{
    DataSet, Registry,
    case::{Case, Choices},
    model, project,
    registry::{Direction, Judge},
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

/// y = x₀ + x₁, 64 examples to train on and 16 others.
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
#[case::no_data(Registry::new(project!()).model(model!(Line)), "Line has no data: add a data set")]
fn a_registry_that_cannot_be_is_refused(#[case] registry: Registry, #[case] expected: &str) {
    let error = registry.check().expect_err("a mistake").to_string();
    assert!(error.contains(expected), "`{error}` does not say `{expected}`");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn an_unknown_model_is_told_from_the_known_ones() {
    let registry = registry().model(model!(Line));
    let error = registry.find(Some("Lime")).expect_err("there is none").to_string();
    assert!(error.contains("unknown model `Lime`: expected one of Line"), "{error}");
}

/// Options that depend on the data are set when the model names its data, and the user's options
/// override them.
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
}

#[test]
fn a_margin_is_declared_or_recorded_or_asked_for() {
    let registry = registry().model(model!(Line));
    let error = registry.margin(&model!(Line)).expect_err("there is none").to_string();
    assert!(error.contains("cargo amp margins --model Line"), "{error}");
    assert_eq!(registry.margin(&model!(Line).margin(0.25)).expect("declared"), 0.25);
}

/// A regression is positive whichever way the value improves.
#[test]
fn a_regression_is_what_is_worse() {
    assert_eq!(Direction::HigherIsBetter.regression(0.75, 0.5), 0.25);
    assert_eq!(Direction::LowerIsBetter.regression(0.75, 0.5), -0.25);
    assert_eq!(Judge::higher("val_acc").resolution(4), 0.25);
    assert_eq!(Judge::loss().resolution(4), 0.0);
}
