//! Tests how a linear layer under autocast rounds its gradients.

use std::collections::BTreeMap;

use amp_core::{
    Module, Result,
    nn::{Context, Dropout, Linear, LinearConfig, Sequential, parameters, place},
    precision::{Policy, Precision},
    tch::{self, Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    model::linear,
    seeded,
};

/// The input, the weight and the incoming gradient have 16 bits. On CUDA, the gradients of the
/// weight (a matrix product) and of the bias (a sum) are f32. On the CPU they are rounded to 16
/// bits, as in PyTorch. The gradient of the input is rounded to 16 bits on CUDA and on the CPU.
#[rstest]
fn gradients_of_weights_are_f32_sums_on_cuda(
    #[values(Precision::Bf16Mixed, Precision::F16Mixed)] precision: Precision,
    #[values(vec![96, 64], vec![8, 12, 64])] shape: Vec<i64>,
) -> Result<()> {
    let _generator = seeded(5);
    let half = precision.compute();
    let draw = |shape: &[i64]| {
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(half).to_kind(Kind::Double)
    };
    let policy = Policy::new(precision, device());
    let layer = linear(64, 33)?;
    place(&layer, policy, &BTreeMap::new())?;
    let weight = layer.weight().detach().to(Device::Cpu).to_kind(half).to_kind(Kind::Double);
    let input = draw(&shape);
    let incoming = draw(&[&shape[..shape.len() - 1], &[33]].concat());

    let given = input.to_kind(half).to(device()).set_requires_grad(true);
    let output = {
        let _region = policy.autocast()?;
        layer.forward(&given, &Context::new(policy, true))?
    };
    assert_eq!(output.kind(), half);
    (output.to_kind(Kind::Double) * incoming.to(device())).sum(Kind::Double).backward();

    let (x, g) = (input.reshape([-1, 64]), incoming.reshape([-1, 33]));
    let [weight_grad, bias_grad] = [0, 1].map(|at| parameters(&layer)[at].tensor.grad());
    assert_eq!(
        [weight_grad.kind(), bias_grad.kind(), given.grad().kind()],
        [Kind::Float, Kind::Float, half]
    );
    let input_error = relative(&given.grad().reshape([-1, 64]), &g.matmul(&weight));
    let errors = [
        relative(&weight_grad, &g.tr().matmul(&x)),
        relative(&bias_grad, &g.sum_dim_intlist(0, false, Kind::Double)),
    ];
    let rounding = if half == Kind::Half { 2.0_f64.powi(-11) } else { 2.0_f64.powi(-8) };
    assert!((rounding / 8.0..2.0 * rounding).contains(&input_error), "{input_error}");
    for error in errors {
        match device().is_cuda() {
            true => assert!(error < 1e-6, "{error}"),
            false => assert!((rounding / 8.0..2.0 * rounding).contains(&error), "{error}"),
        }
    }
    Ok(())
}

/// If a layer computes in the dtype of its parameters, each gradient is summed in f32 or f64 and
/// then rounded once. This also holds for so many rows that several blocks of a CUDA kernel sum the
/// gradient of the bias. The rounding errors of a sum of n terms grow with √n.
#[rstest]
fn gradients_are_rounded_once(
    #[values(
        (Precision::F64True, f64::EPSILON),
        (Precision::F32True, f64::from(f32::EPSILON)),
        (Precision::F16True, 2.0_f64.powi(-11)),
        (Precision::Bf16True, 2.0_f64.powi(-8))
    )]
    (precision, epsilon): (Precision, f64),
    #[values(vec![64], vec![33, 64], vec![3, 700, 64])] shape: Vec<i64>,
    #[values(true, false)] bias: bool,
) -> Result<()> {
    let _generator = seeded(7);
    let kind = precision.compute();
    let policy = Policy::new(precision, device());
    let layer = Linear::new(LinearConfig { bias, ..LinearConfig::new(64, 37) })?;
    place(&layer, policy, &BTreeMap::new())?;
    let draw = |shape: &[i64]| {
        Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind).to(device())
    };
    let given = draw(&shape).set_requires_grad(true);
    let incoming = draw(&[&shape[..shape.len() - 1], &[37]].concat());
    let output = layer.forward(&given, &Context::new(policy, true))?;
    (output.to_kind(Kind::Double) * incoming.to_kind(Kind::Double)).sum(Kind::Double).backward();

    let matrix = |tensor: &Tensor, columns| wide(tensor).reshape([-1, columns]);
    let (x, g) = (matrix(&given, 64), matrix(&incoming, 37));
    let summed = if kind == Kind::Double { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let bound = 2.0 * epsilon + (g.size()[0] as f64).sqrt() * summed;
    let mut exact = vec![g.tr().matmul(&x)];
    if bias {
        exact.push(g.sum_dim_intlist(0, false, Kind::Double));
    }
    for (parameter, exact) in parameters(&layer).iter().zip(&exact) {
        let grad = parameter.tensor.grad();
        assert_eq!(grad.kind(), kind);
        let error = relative(&wide(&grad), exact);
        assert!(error <= bound, "{}: {error}", parameter.name);
    }
    let error = relative(&matrix(&given.grad(), 64), &g.matmul(&wide(layer.weight())));
    assert!(error <= bound, "input: {error}");
    Ok(())
}

/// The second derivatives of a linear layer are correct. The gradient of |d/dx sum((x·Wᵀ + b)²)|²
/// with respect to W equals the gradient that libtorch's operations give in f64 on the CPU.
#[rstest]
#[case(Precision::F32True, 1e-5)]
#[case(Precision::Bf16Mixed, 0.02)]
fn a_layer_has_second_derivatives(#[case] precision: Precision, #[case] bound: f64) -> Result<()> {
    let _generator = seeded(8);
    let policy = Policy::new(precision, device());
    let layer = linear(16, 8)?;
    place(&layer, policy, &BTreeMap::new())?;
    let input = Tensor::randn([5, 16], (Kind::Float, device()));
    let penalty = |input: &Tensor, output: &Tensor| -> Result<Tensor> {
        let loss = output.to_kind(input.kind()).square().sum(input.kind());
        let grads = Tensor::f_run_backward(&[loss], &[input], true, true)?;
        Ok(grads[0].square().sum(input.kind()))
    };
    let given = input.set_requires_grad(true);
    let output = {
        let _region = policy.autocast()?;
        layer.forward(&given, &Context::new(policy, true))?
    };
    penalty(&given, &output)?.backward();
    let all = parameters(&layer);
    let [weight, bias] = [0, 1].map(|at| wide(&all[at].tensor).detach().set_requires_grad(true));
    let exact = wide(&input).detach().set_requires_grad(true);
    penalty(&exact, &(exact.matmul(&weight.tr()) + &bias))?.backward();
    let error = relative(&wide(&all[0].tensor.grad()), &weight.grad());
    assert!(error < bound, "{error}");
    Ok(())
}

/// If a backward kernel cannot be differentiated, a request for a second derivative returns an
/// error. A gradient without an autograd graph would be treated as a constant, and the second
/// derivative would be wrong.
#[test]
fn a_kernel_without_a_second_derivative_returns_an_error() -> Result<()> {
    let _generator = seeded(9);
    let policy = Policy::new(Precision::F32True, device());
    let layer = Dropout::new(0.5)?;
    let input = Tensor::randn([8, 8], (Kind::Float, device())).set_requires_grad(true);
    let output = layer.forward(&input, &Context::new(policy, true))?;
    let loss = output.square().sum(Kind::Float);
    match Tensor::f_run_backward(&[loss], &[&input], true, true) {
        Err(error) => {
            assert!(device().is_cuda());
            let text = error.to_string();
            assert!(text.contains("second derivatives through dropout"), "{text}");
        }
        Ok(grads) => assert!(!device().is_cuda() && grads[0].requires_grad()),
    }
    Ok(())
}

/// When an autocast region starts, it casts all weights that the previous region used, in one
/// operation. Outputs and gradients equal those of a new model with the same weights. This shows
/// that weights that have changed since the previous region are cast again.
#[rstest]
fn a_region_casts_the_weights_of_the_previous_region_together(
    #[values(Precision::Bf16Mixed, Precision::F16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(6);
    let policy = Policy::new(precision, device());
    let build = |factor: f64| -> Result<Sequential> {
        tch::manual_seed(6);
        let options = LinearConfig { bias: false, ..LinearConfig::new(16, 5) };
        let layers = Sequential::new(vec![
            Box::new(linear(8, 16)?) as Box<dyn Module>,
            Box::new(linear(16, 16)?),
            Box::new(Linear::new(options)?),
        ]);
        place(&layers, policy, &BTreeMap::new())?;
        multiply(&layers, factor);
        Ok(layers)
    };
    let input = Tensor::randn([7, 8], (Kind::Float, device()));
    let pass = |layers: &Sequential| -> Result<(Tensor, Vec<Tensor>)> {
        let output = {
            let _region = policy.autocast()?;
            let cx = Context::new(policy, true);
            // The layers run twice in one autocast region, as with micro-batches.
            drop(layers.forward(&input, &cx)?);
            layers.forward(&input, &cx)?
        };
        output.to_kind(Kind::Float).square().sum(Kind::Float).backward();
        let grads = parameters(layers).into_iter().map(|mut parameter| {
            let grad = parameter.tensor.grad().copy();
            parameter.tensor.zero_grad();
            grad
        });
        Ok((output, grads.collect()))
    };
    let layers = build(1.0)?;
    let first = pass(&layers)?;
    multiply(&layers, 2.0);
    let second = pass(&layers)?;
    assert_ne!(first, second);
    assert_eq!(second, pass(&build(2.0)?)?);
    multiply(&layers, 0.5);
    assert_eq!(pass(&layers)?, first);
    Ok(())
}

fn multiply(layers: &Sequential, factor: f64) {
    for parameter in parameters(layers) {
        let _ = tch::no_grad(|| parameter.tensor.shallow_clone().g_mul_scalar_(factor));
    }
}
