//! Tests of the first steps of a model that computes much outside of its layers.

use amp_core::prelude::*;
use rstest::rstest;

use super::run;
use crate::{
    DataSet, Registry,
    gate::{Task, checked::Checked, deadline::Deadline, job::Job},
    length::Length,
    model, project,
};

/// A model that computes its attention, its gates and its loss by operations on tensors. It does
/// not pass the results to `cx.within`, which would let the emulation round them.
#[derive(LightningModule)]
#[forward(|x| {
    let mut states = embed(x)?;
    for _ in 0..4 {
        let (query, key, value) = (query(&states)?, key(&states)?, value(&states)?);
        let scores = query.f_matmul(&key.f_transpose(1, 2)?)?.f_mul_scalar(0.2)?;
        let mixed = scores.f_softmax(-1, scores.kind())?.f_matmul(&value)?;
        states = states.f_add(&mixed.f_tanh()?.f_mul(&states.f_sigmoid()?)?)?;
    }
    head(&states.f_mul(&states)?.f_sub_scalar(0.1)?)
})]
#[loss(with = |output, target| {
    let difference = output.f_squeeze_dim(-1)?.f_sub(target)?;
    let (negative, zero) = (difference.f_neg()?, difference.f_zeros_like()?);
    Ok(difference.f_logaddexp(&negative)?.f_maximum(&zero)?.f_mean(None)?)
})]
#[optimizer(adam, lr = self.lr)]
struct Attends {
    #[hparam(default = 1e-3)]
    lr: f64,
    #[layer(linear(4, 24))]
    embed: Linear,
    #[layer(linear(24, 24))]
    query: Linear,
    #[layer(linear(24, 24))]
    key: Linear,
    #[layer(linear(24, 24))]
    value: Linear,
    #[layer(linear(24, 1))]
    head: Linear,
}

/// Returns a data set for regression: the inputs are sequences of length 12, with a number to
/// predict at each position.
fn sequences(batch_size: i64) -> Result<DataModule> {
    let part = |first: i64| {
        let (length, width, count) = (12, 4, 64);
        let x = Tensor::f_arange(count * length * width, (Kind::Float, Device::Cpu))?;
        let x = x.f_add_scalar(first)?.f_square()?.f_sin()?.f_view([count, length, width])?;
        let y = x.f_cumsum(1, Kind::Float)?.f_select(2, 0)?.f_sin()?;
        Batch::new(x, y)
    };
    Ok(DataModule::new("sequences", part(0)?, part(12_800)?, batch_size))
}

/// Checks that the measured values of such a model are below 80 % of their bounds, also with a small
/// learning rate, with which 16-bit weights lose most of their updates.
#[rstest]
#[case::f16_mixed(Precision::F16Mixed, 1e-3)]
#[case::bf16_mixed(Precision::Bf16Mixed, 1e-3)]
#[case::f16_true(Precision::F16True, 1e-3)]
#[case::bf16_true(Precision::Bf16True, 1e-3)]
#[case::f16_true_loses_updates(Precision::F16True, 1e-5)]
#[case::bf16_true_loses_updates(Precision::Bf16True, 1e-5)]
fn operations_outside_of_layers_are_rounded(
    #[case] precision: Precision,
    #[case] lr: f64,
) -> Result<()> {
    let model = model!(Attends).hyperparameters(serde_json::json!({ "lr": lr }));
    let registry = Registry::new(project!())
        .data_set(DataSet::new("sequences", sequences))
        .model(model.data("sequences").judged_by_loss().margin(1.0).batch_size(16));
    let job = Job::new("Attends", precision, 1, Length::Epochs(1), Task::Conformance);
    let outcome = run(&job, &registry, &Deadline::default())?;
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    for Checked { what, figure, bound, .. } in outcome.conformance.unwrap_or_default() {
        let share = figure.zip(bound).map(|(figure, bound)| figure / bound);
        assert!(share.is_some_and(|share| share < 0.8), "{what}: {share:?} of its bound");
    }
    Ok(())
}
