//! Tests of linear layers, which on CUDA (`AMP_DEVICE=cuda`) are fused with the ReLU or GELU and
//! the dropout after them. The expected results are computed by libtorch in f64 on the CPU.

use amp_core::{
    Module, Result,
    nn::{Dropout, Gelu, GeluTanh, Linear, LinearConfig, Relu, Sequential, parameters},
    precision::{Policy, Precision},
    tch::{self, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    layers::{draw, factors, fill, pass, rounding},
    needs_cuda, seeded,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    Relu,
    Gelu,
    GeluTanh,
}

impl Behind {
    fn layer(self) -> Box<dyn Module> {
        match self {
            Self::Relu => Box::new(Relu),
            Self::Gelu => Box::new(Gelu),
            Self::GeluTanh => Box::new(GeluTanh),
        }
    }

    fn of(self, x: &Tensor) -> Tensor {
        match self {
            Self::Relu => x.relu(),
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
        }
    }
}

fn layers(shape: [i64; 2], bias: bool, behind: Behind, p: f64) -> Result<Sequential> {
    let options = LinearConfig { bias, ..LinearConfig::new(shape[0], shape[1]) };
    let mut layers: Vec<Box<dyn Module>> = vec![Box::new(Linear::new(options)?), behind.layer()];
    if p > 0.0 {
        layers.push(Box::new(Dropout::new(p)?));
    }
    Ok(Sequential::new(layers))
}

/// The results of a linear layer with its activation and dropout equal those in f64, both fused and
/// as separate layers. The separate layers may use another matrix product, which sums in another
/// order. For the sum of the bias's gradient, the cases have more rows than one kernel launch sums,
/// a number of columns that is no multiple of the vector loads, and so many elements that another
/// kernel, with vector loads of 16 bytes, computes the sum.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn activation_and_dropout_go_along(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values([1, 8, 4], [130, 64, 36], [300, 24, 33], [2100, 16, 40], [2100, 16, 1024])]
    sizes: [i64; 3],
    #[values((true, 0.3), (false, 0.3), (true, 0.0))] (bias, p): (bool, f64),
    #[values(Behind::Relu, Behind::Gelu, Behind::GeluTanh)] behind: Behind,
) -> Result<()> {
    needs_cuda();
    let [rows, inputs, outputs] = sizes;
    let _generator = seeded(12);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    let input = draw(&[rows, inputs], compute, 1.0, 0.0);
    let incoming = draw(&[rows, outputs], compute, 1.0, 0.0);
    let layers = layers([inputs, outputs], bias, behind, p)?;
    let own = fill(&layers, policy, 0.5, 0.1)?;
    let together = pass(&layers, policy, [&input, &incoming], false)?;
    let alone = pass(&layers, policy, [&input, &incoming], true)?;

    let half = rounding(compute) > 1e-4;
    let leaf = |tensor: &Tensor| wide(&tensor.to_kind(compute)).set_requires_grad(true);
    let (exact_in, exact_own) = (leaf(&input), own.iter().map(leaf).collect::<Vec<_>>());
    let active = behind.of(&exact_in.linear(&exact_own[0], exact_own.get(1)));
    // Rounding may set an activation near 0 to 0 in only one of two computations. The comparison of
    // zeros below therefore leaves out elements near 0.
    let distinct = active.abs().gt(0.01).detach();
    let exact = if p > 0.0 { active * factors(p, [rows, outputs], 5)? } else { active };
    (&exact * wide(&incoming)).sum(Kind::Double).backward();
    let exact_grads = exact_own.iter().map(|own| own.grad());
    let all = [exact.detach(), exact_in.grad()].into_iter().chain(exact_grads);

    let terms = (inputs.max(rows) as f64).sqrt();
    for (((name, together), (_, alone)), exact) in together.named().zip(alone.named()).zip(all) {
        let kind = if name.starts_with("parameter") { storage } else { compute };
        assert_eq!((together.kind(), alone.kind()), (kind, kind), "{name}");
        // Each of the operations rounds its result, and these rounding errors add up.
        let bound = if half { 4.0 } else { 2.0 * terms } * rounding(compute);
        for (how, seen) in [("together", together), ("alone", alone)] {
            let off = relative(seen, &exact);
            assert!(off < bound, "{name}, {how}: error {off}, bound {bound}");
        }
    }
    // Dropout sets the same elements to zero in fused and in separate layers.
    let zeros = |seen: &Tensor| wide(seen).eq(0.0).logical_and(&distinct);
    let other = zeros(&together.output).ne_tensor(&zeros(&alone.output)).sum(Kind::Int64);
    assert_eq!(other.int64_value(&[]), 0);
    Ok(())
}

/// Second derivatives can be computed through ReLU. No element is close to 0, where the derivative
/// of ReLU jumps.
#[test]
fn second_derivatives_go_through_relu() -> Result<()> {
    let _generator = seeded(13);
    let policy = Policy::new(Precision::F64True, device());
    let layers = layers([6, 8], true, Behind::Relu, 0.0)?;
    let own = fill(&layers, policy, 1.0, 0.0)?;
    let given = draw(&[5, 6], Kind::Double, 1.0, 0.0).to(device()).set_requires_grad(true);
    let penalty = |input: &Tensor, output: Tensor| -> Result<Tensor> {
        let loss = output.square().sum(Kind::Double);
        let grads = Tensor::f_run_backward(&[loss], &[input], true, true)?;
        Ok(grads[0].square().sum(Kind::Double))
    };
    let cx = amp_core::nn::Context::new(policy, true);
    penalty(&given, layers.forward(&given, &cx)?)?.backward();
    let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
    let (exact_in, weight, bias) = (leaf(&given), leaf(&own[0]), leaf(&own[1]));
    penalty(&exact_in, exact_in.linear(&weight, Some(&bias)).relu())?.backward();
    for (seen, exact) in own.iter().zip([weight, bias]) {
        let off = relative(&seen.grad(), &exact.grad());
        assert!(off < 1e-12, "{off}");
    }
    Ok(())
}

/// If the parameters of a layer are frozen, the gradient of the layer's input does not change, and
/// the parameters get no gradient.
#[rstest]
fn a_frozen_layer_passes_its_gradient_on(
    #[values(Precision::F32True, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(14);
    let policy = Policy::new(precision, device());
    let layers = layers([8, 12], true, Behind::Relu, 0.0)?;
    let own = fill(&layers, policy, 0.5, 0.0)?;
    let given = draw(&[7, 8], Kind::Float, 1.0, 0.0).to(device());
    let run = || -> Result<Tensor> {
        let input = given.detach().set_requires_grad(true);
        let _region = policy.autocast()?;
        let output = layers.forward(&input, &amp_core::nn::Context::new(policy, true))?;
        output.sum(Kind::Float).backward();
        Ok(input.grad())
    };
    let trained = run()?;
    for parameter in parameters(&layers) {
        let mut tensor = parameter.tensor;
        tensor.zero_grad();
        let _ = tensor.set_requires_grad(false);
    }
    assert!(run()?.equal(&trained));
    assert!(own.iter().all(|tensor| {
        let grad = tensor.grad();
        !grad.defined() || tch::no_grad(|| grad.abs().sum(Kind::Float).double_value(&[])) == 0.0
    }));
    Ok(())
}
