//! Tests that a training step and a validation must not broadcast an output `[N, 1]` and a target
//! `[N]`.

use amp_core::{
    Result,
    optim::{AdamW, OptimizerConfig},
    tch::{Kind, Tensor},
    trainer::{Check, Invariant},
};
use rstest::rstest;

use super::{broken, config, fit};
use crate::support::{
    model::{Model, demo},
    seeded,
};

/// Returns the mean squared difference between the first logit, reshaped to `shape`, and the
/// target, which has the shape `[8]`.
fn first_logit(output: &Tensor, target: &Tensor, shape: &[i64]) -> Result<Tensor> {
    let output = output.f_select(1, 0)?.f_reshape(shape)?.f_to_kind(Kind::Float)?;
    Ok(output.f_sub(&target.f_to_kind(Kind::Float)?)?.f_square()?.f_mean(Kind::Float)?)
}

fn model(loss: fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Model> {
    let mut model = Model::regression(demo(0.0)?, |_| OptimizerConfig::new(AdamW::default()));
    model.loss = loss;
    Ok(model)
}

/// A loss of one's own that combines outputs `[8, 1]` with targets `[8]` ends the run in the first
/// step, and the error names the operation and the shapes.
#[rstest]
fn a_broadcast_loss_is_reported(#[values(Check::Cheap, Check::Full)] level: Check) -> Result<()> {
    let _section = seeded(1);
    let mut model = model(|output, target| first_logit(output, target, &[8, 1]))?;
    let text = broken(fit(config(level), &mut model), Invariant::ShapesFit);
    let says = "step 1: `sub` combines tensors of the shapes [8, 1] and [8], so that libtorch broadcasts them";
    assert!(text.starts_with(says), "{text}");
    Ok(())
}

fn equal_shapes(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    first_logit(output, target, &[8])
}

fn all_pairs(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    first_logit(output, &target.f_unsqueeze(0)?, &[8, 1])
}

/// Equal shapes are accepted, and so is a loss over all pairs of an output and a target whose
/// shapes have the same number of dimensions.
#[rstest]
#[case::equal_shapes(equal_shapes)]
#[case::all_pairs(all_pairs)]
fn equal_shapes_and_explicit_pairs_are_accepted(
    #[values(Check::Cheap, Check::Full)] level: Check,
    #[case] loss: fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    let _section = seeded(1);
    fit(config(level), &mut model(loss)?)?;
    Ok(())
}

/// Returns a loss that fits. In validation, also compares each predicted class with `others`.
fn compared(output: &Tensor, target: &Tensor, others: &Tensor) -> Result<Tensor> {
    if !output.requires_grad() {
        let _ = output.f_argmax(1, true)?.f_eq_tensor(others)?;
    }
    equal_shapes(output, target)
}

fn with_targets(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    compared(output, target, &target.f_to_kind(Kind::Int)?)
}

fn with_each_class(output: &Tensor, target: &Tensor) -> Result<Tensor> {
    compared(output, target, &Tensor::f_arange(8, (Kind::Int64, output.device()))?)
}

/// A metric of one's own that compares predictions `[8, 1]` with targets `[8]` ends the run in the
/// first validation, also if no training step does so.
#[rstest]
fn a_broadcast_metric_is_reported(
    #[values(Check::Cheap, Check::Full)] level: Check,
    #[values(0, 2)] num_sanity_val_steps: i64,
) -> Result<()> {
    let _section = seeded(1);
    let config =
        config(level).with(|config| config.loops.num_sanity_val_steps = num_sanity_val_steps);
    let text = broken(fit(config, &mut model(with_targets)?), Invariant::ShapesFit);
    let after = if num_sanity_val_steps == 0 { 7 } else { 0 };
    let says = format!(
        "validation after step {after}: `eq` combines tensors of the shapes [8, 1] and [8], so"
    );
    assert!(text.starts_with(&says), "{text}");
    Ok(())
}

/// A comparison of each prediction with each class is accepted, even if there are as many classes
/// as examples.
#[rstest]
fn a_comparison_with_each_class_is_accepted(
    #[values(Check::Cheap, Check::Full)] level: Check,
) -> Result<()> {
    let _section = seeded(1);
    fit(config(level), &mut model(with_each_class)?)?;
    Ok(())
}
