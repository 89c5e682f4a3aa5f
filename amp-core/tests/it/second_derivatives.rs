//! Tests of second derivatives, which gradient penalties need, for every layer that has kernels of
//! this project.

use std::collections::BTreeMap;

use amp_core::{
    Module, Result,
    nn::{
        BatchNorm, BatchNormConfig, Context, Conv2d, Conv2dConfig, Dropout, Gelu, LayerNorm,
        LayerNormConfig, MaxPool2d, MaxPool2dConfig, MultiheadAttention, MultiheadAttentionConfig,
        Relu, Sequential, Silu, Tanh, parameters, place,
    },
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{device, model::linear, seeded};

/// A convolution, batch norm, the addition of the input, and ReLU.
#[derive(Module)]
#[forward(|x| self.norm.forward_add_relu(&conv(x)?, x, cx))]
struct Residual {
    #[layer(conv2d(8, 8, 1))]
    conv: Conv2d,
    #[layer(batch_norm2d(8))]
    norm: BatchNorm,
}

type Build = fn() -> Result<Sequential>;

fn stack(layers: Vec<Box<dyn Module>>) -> Result<Sequential> {
    Ok(Sequential::new(layers))
}

fn norm() -> Result<LayerNorm> {
    LayerNorm::new(LayerNormConfig::new(8))
}

/// Returns the gradients of |d Σ output² / d input|² with respect to the weights. These gradients
/// need the second derivatives of each layer.
fn gradients(
    build: Build,
    precision: Precision,
    device: Device,
    shape: &[i64],
) -> Result<Vec<(String, Tensor)>> {
    let _section = seeded(3);
    let layers = build()?;
    let input = Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let policy = Policy::new(precision, device);
    place(&layers, policy, &BTreeMap::new())?;
    let input = input.to_device(device).to_kind(precision.storage()).set_requires_grad(true);
    let output = {
        let _autocast = policy.autocast()?;
        layers.forward(&input, &Context::new(policy, true).without_dropout())?
    };
    let kind = if precision == Precision::F64True { Kind::Double } else { Kind::Float };
    let energy = output.f_to_kind(kind)?.f_square()?.f_sum(kind)?;
    let slope = Tensor::f_run_backward(&[energy], &[&input], true, true)?.remove(0);
    let parameters = parameters(&layers);
    let tensors: Vec<&Tensor> = parameters.iter().map(|parameter| &parameter.tensor).collect();
    let penalty = slope.f_to_kind(kind)?.f_square()?.f_sum(kind)?;
    let gradients = Tensor::f_run_backward(&[penalty], &tensors, false, false)?;
    let named = parameters.iter().zip(gradients);
    Ok(named.map(|(parameter, gradient)| (parameter.name.clone(), gradient)).collect())
}

/// On every device and in every precision, the second derivatives equal those in f64 on the CPU.
#[rstest]
#[case::linear(|| stack(vec![Box::new(linear(8, 8)?), Box::new(Tanh)]), &[6, 8])]
#[case::linear_relu(|| stack(vec![Box::new(linear(8, 8)?), Box::new(Relu), Box::new(linear(8, 8)?)]), &[6, 8])]
#[case::linear_gelu(|| stack(vec![Box::new(linear(8, 8)?), Box::new(Gelu), Box::new(linear(8, 8)?)]), &[6, 8])]
#[case::linear_silu(|| stack(vec![Box::new(linear(8, 8)?), Box::new(Silu), Box::new(linear(8, 8)?)]), &[6, 8])]
#[case::layer_norm(|| stack(vec![Box::new(linear(8, 8)?), Box::new(norm()?), Box::new(Tanh)]), &[6, 8])]
#[case::batch_norm(
    || stack(vec![
        Box::new(linear(8, 8)?),
        Box::new(BatchNorm::new(BatchNormConfig::new(8))?),
        Box::new(Relu),
        Box::new(Dropout::new(0.3)?),
        Box::new(linear(8, 8)?),
    ]),
    &[6, 8],
)]
#[case::conv(
    || stack(vec![
        Box::new(Conv2d::new(Conv2dConfig { padding: 1.into(), ..Conv2dConfig::new(3, 8, 3) })?),
        Box::new(BatchNorm::new(BatchNormConfig::new(8))?),
        Box::new(Relu),
        Box::new(Conv2d::new(Conv2dConfig { padding: 1.into(), ..Conv2dConfig::new(8, 3, 3) })?),
    ]),
    &[4, 3, 8, 8],
)]
#[case::max_pool(
    || stack(vec![
        Box::new(Conv2d::new(Conv2dConfig::new(3, 8, 3))?),
        Box::new(Tanh),
        Box::new(MaxPool2d::new(MaxPool2dConfig {
            stride: 2.into(),
            padding: 1.into(),
            ..MaxPool2dConfig::new(3)
        })?),
    ]),
    &[4, 3, 8, 8],
)]
#[case::residual(
    || stack(vec![
        Box::new(Conv2d::new(Conv2dConfig { padding: 1.into(), ..Conv2dConfig::new(3, 8, 3) })?),
        Box::new(Residual::builder().build()?),
    ]),
    &[4, 3, 8, 8],
)]
fn gradients_of_penalties_equal_f64(
    #[case] build: Build,
    #[case] shape: &[i64],
    #[values((Precision::F32True, 1e-3), (Precision::F64True, 1e-9), (Precision::Bf16Mixed, 0.1))]
    (precision, tolerance): (Precision, f64),
) -> Result<()> {
    let expected = gradients(build, Precision::F64True, Device::Cpu, shape)?;
    let seen = gradients(build, precision, device(), shape)?;
    // Errors are measured relative to the largest gradient. They cannot be measured relative to
    // each gradient, because that of a bias before a batch norm is 0.
    let norms = expected.iter().filter(|(_, gradient)| gradient.defined());
    let size = norms.map(|(_, gradient)| gradient.norm().double_value(&[])).fold(0.0, f64::max);
    for ((name, expected), (_, seen)) in expected.iter().zip(&seen) {
        if !expected.defined() || !seen.defined() {
            assert_eq!(expected.defined(), seen.defined(), "{name}");
            continue;
        }
        let seen = seen.to_device(Device::Cpu).to_kind(Kind::Double);
        let error = (&seen - expected).norm().double_value(&[]) / size;
        assert!(
            error <= tolerance,
            "{name}: relative error {error:.2e}, largest gradient {size:.2e}"
        );
    }
    Ok(())
}

/// Fused attention kernels have no second derivative. libtorch returns an error and not a wrong
/// value.
#[test]
fn attention_reports_that_it_has_no_second_derivative() {
    let build: Build =
        || stack(vec![Box::new(MultiheadAttention::new(MultiheadAttentionConfig::new(8, 2))?)]);
    match gradients(build, Precision::Bf16Mixed, device(), &[2, 4, 8]) {
        Ok(seen) => {
            let expected =
                gradients(build, Precision::F64True, Device::Cpu, &[2, 4, 8]).expect("in 64 bits");
            for ((name, expected), (_, seen)) in expected.iter().zip(seen) {
                if !expected.defined() {
                    continue;
                }
                let seen = seen.to_device(Device::Cpu).to_kind(Kind::Double);
                let error = (seen - expected).norm() / expected.norm();
                assert!(error.double_value(&[]) <= 0.2, "{name}");
            }
        }
        Err(error) => assert!(error.to_string().contains("derivative"), "{error}"),
    }
}
