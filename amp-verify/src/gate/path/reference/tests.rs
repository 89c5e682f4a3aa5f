//! Checks that correct models break no rule of the training path.

use amp_core::{
    prelude::*,
    trainer::{Averaging, Freeze},
};
use rstest::rstest;

use crate::{
    DataSet, Model, Registry,
    gate::{
        Task,
        deadline::Deadline,
        job::Job,
        waves::{waves, words},
    },
    length::Length,
    model, project,
};

#[derive(LightningModule)]
#[forward(|x| head(&first(x)?.f_tanh()?))]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(linear(4, 8))]
    first: Linear,
    #[layer(linear(8, 1))]
    head: Linear,
}

/// Checks that a model breaks no rule of the training path.
fn passes(model: Model, precision: Precision) -> Result<()> {
    let job = Job::new(model.name(), precision, 3, Length::Epochs(1), Task::Path);
    let registry = Registry::new(project!())
        .data_set(DataSet::new("waves", waves))
        .data_set(DataSet::new("words", words))
        .model(model);
    let failures = crate::gate::path::run(&job, &registry, &Deadline::default())?.failures;
    assert!(failures.is_empty(), "{failures:?}");
    Ok(())
}

/// Checks that frozen parameters break no rule. They have no gradient in the run and in the
/// reference, so there is nothing to compare.
#[rstest]
#[case::always(Freeze::new("first.*"))]
#[case::until_a_step(Freeze::new("first.*").until_step(4))]
fn frozen_parameters_are_not_compared(#[case] freeze: Freeze) -> Result<()> {
    let model = model!(Net).judged_by_loss().margin(1.0).batch_size(4).freeze([freeze]);
    passes(model, Precision::Bf16Mixed)
}

/// Checks that the gate trains, and so checks, a parameter from the first step if a user's run
/// would train it only in a later epoch or step, after the gate's runs have ended.
#[rstest]
#[case::until_an_epoch(Freeze::new("first.*").until_epoch(2), true)]
#[case::until_a_late_step(Freeze::new("first.*").until_step(1000), true)]
#[case::always(Freeze::new("first.*"), false)]
fn parameters_that_are_trained_later_are_checked(
    #[case] freeze: Freeze,
    #[case] trains_all: bool,
) -> Result<()> {
    let size = |model: Model| -> Result<i64> {
        let job = Job::new(model.name(), Precision::Bf16Mixed, 3, Length::Epochs(1), Task::Path);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("waves", waves)).model(model);
        let outcome = crate::gate::path::run(&job, &registry, &Deadline::default())?;
        assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        Ok(outcome.path.map_or(0, |path| path.parameters))
    };
    let model = || model!(Net).judged_by_loss().margin(1.0).batch_size(4);
    assert_eq!(size(model().freeze([freeze]))? == size(model())?, trains_all);
    Ok(())
}

#[derive(LightningModule)]
#[loss(cross_entropy, ignore_index = -1)]
#[optimizer(sgd, lr = 0.1)]
struct Tagger {
    #[layer(sequential(linear(4, 8), tanh, linear(8, 3)))]
    body: Sequential,
}

/// Checks that the reference weights batches by their numbers of targets (which may be 0), as the
/// trainer does. Also checks that the gate expects no lower loss scale after a step without
/// targets.
#[rstest]
#[case::some_without_targets(1, 4, Precision::Bf16Mixed)]
#[case::all_with_targets(2, 4, Precision::Bf16Mixed)]
#[case::steps_without_targets(1, 1, Precision::F16Mixed)]
fn batches_have_the_weights_of_their_losses(
    #[case] batch_size: i64,
    #[case] window: i64,
    #[case] precision: Precision,
) -> Result<()> {
    let model = model!(Tagger).data("words").judged_by_loss().margin(1.0).batch_size(batch_size);
    passes(model.accumulate_grad_batches(window), precision)
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Normed {
    #[layer(sequential(linear(4, 8), batch_norm1d(8), relu, linear(8, 1)))]
    body: Sequential,
}

/// Checks that weight averaging breaks no rule: buffers are compared before they are averaged.
#[rstest]
#[case::ema(Averaging::Ema { decay: 0.95 })]
#[case::swa(Averaging::Swa { start_epoch: 0 })]
fn averaged_batch_statistics_are_not_compared(#[case] averaging: Averaging) -> Result<()> {
    let model = model!(Normed).judged_by_loss().margin(1.0).batch_size(16);
    passes(model.averaging(averaging), Precision::Bf16Mixed)
}
