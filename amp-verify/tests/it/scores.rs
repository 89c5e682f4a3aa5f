//! Tests of metrics that are no fractions, such as a reward or a peak signal-to-noise ratio.

use amp_core::{
    Trainer, TrainerConfig,
    event::Event,
    prelude::*,
    tch::{Device, Kind, Tensor},
};
use amp_verify::{
    DataSet, Model, Registry,
    case::{Case, Choices},
    comparison::Comparison,
    matrix, model, project,
    registry::Judge,
    view,
};
use rstest::rstest;

/// Returns 16 training examples and 16 validation examples.
fn rows(batch_size: i64) -> Result<DataModule> {
    let options = (Kind::Float, Device::Cpu);
    let part = |value: i64| {
        Batch::new(Tensor::f_full([16, 2], value, options)?, Tensor::f_ones([16, 1], options)?)
    };
    Ok(DataModule::new("rows", part(1)?, part(2)?, batch_size))
}

/// Checks that a fraction is shown in percent and a score in its own unit. If a metric is declared
/// as a fraction, but one of its values is not between 0 and 1, a note suggests `.score(…)`.
#[rstest]
#[case::a_fraction(Judge::higher("val_share"), "25.00%", None)]
#[case::no_fraction(
    Judge::higher("val_level"),
    "5700.00%",
    Some(r#"declare it with `.score("val_level")`"#)
)]
#[case::a_score(Judge::score("val_level"), "57.0000", None)]
fn a_score_is_shown_in_its_own_unit(
    #[case] judge: Judge,
    #[case] shown: &str,
    #[case] note: Option<&str>,
) -> Result<()> {
    let config =
        TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, Device::Cpu) };
    let mut level = Level::builder().build()?;
    let record = Trainer::new(config).fit(&mut level, &rows(8)?)?;
    let comparison = Comparison::new(vec![record.clone(), record], judge, 8);
    let table = view::table(&comparison);
    let row = table.lines().find(|line| line.contains("32-true")).unwrap_or_default();
    assert!(row.contains(shown) && row.contains('%') == shown.contains('%'), "{row}");
    assert_eq!(table.contains(".score("), note.is_some(), "{table}");
    assert!(note.is_none_or(|note| table.contains(note)), "{table}");
    Ok(())
}

/// Checks the confidence interval of several seeds that all have the same value. Its width is 0 for
/// a score. For a fraction it is larger, because a fraction is rounded to a multiple of 1 / (number
/// of examples).
#[rstest]
#[case::a_fraction(model!(Level).metric("val_share"), false)]
#[case::a_score(model!(Level).score("val_level"), true)]
#[case::an_error(model!(Level).error_metric("val_level"), true)]
fn only_a_fraction_has_a_smallest_step(#[case] model: Model, #[case] exact: bool) -> Result<()> {
    let registry = Registry::new(project!()).data_set(DataSet::new("rows", rows));
    let registry = registry.model(model.epochs(1).batch_size(8));
    let case = Case::new(&registry, registry.find(None)?, Choices::default(), Device::Cpu)?;
    let comparison = matrix::over_seeds(&case, &[], 3, &mut |_: &Event| Ok(()))?;
    let seeds = comparison.runs[0].over_seeds.as_ref().expect("three seeds");
    let interval = seeds.accuracy.interval.expect("finite values");
    assert_eq!(interval.half_width == 0.0, exact, "{interval:?}");
    Ok(())
}

/// A model with a metric that is a fraction, and one that is not.
#[derive(LightningModule)]
#[loss(mse_loss)]
#[metric(mean, of = quarter, name = share)]
#[metric(mean, of = fifty_seven, name = level)]
#[optimizer(sgd, lr = 0.0)]
struct Level {
    #[layer(linear(2, 1))]
    head: Linear,
}

fn quarter(output: &Tensor, _: &Tensor) -> Result<Tensor> {
    Ok(output.f_select(1, 0)?.f_full_like(0.25)?)
}

fn fifty_seven(output: &Tensor, _: &Tensor) -> Result<Tensor> {
    Ok(output.f_select(1, 0)?.f_full_like(57)?)
}
