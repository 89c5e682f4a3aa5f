//! Tests that a training step must not broadcast an output `[N, 1]` and a target `[N]`.

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
