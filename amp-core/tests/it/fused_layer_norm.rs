//! Tests of layer normalization, which on CUDA (`AMP_DEVICE=cuda`) is fused with the operations
//! before and after it. The expected results are computed by libtorch in f64 on the CPU.

use amp_core::{
    Module, Result,
    nn::{
        Context, Dropout, Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig, Sequential,
        TransformerEncoderLayer, TransformerEncoderLayerConfig,
    },
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    layers::{draw, factors, fill, pass, rounding},
    needs_cuda, seeded,
};

/// The results of a layer norm equal those in f64, for the norm alone and for the norm followed by
/// GELU and dropout. The shapes have rows of 4 elements (one vector load), rows that are longer
/// than a block processes at once, and more rows than one kernel launch sums for the gradients of
/// weight and bias.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_norm_with_gelu_and_dropout_equals_f64(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values([3, 4], [130, 36], [2, 5000], [1100, 100])] shape: [i64; 2],
    #[values((true, 0.3), (true, 0.0), (false, 0.3), (false, 0.0))] (gelu, p): (bool, f64),
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(15);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    let input = draw(&shape, compute, 2.0, 10.0);
    // Under autocast, the norm's output is f32, as in PyTorch. The gradient of the output is f32
    // too, like the parameters.
    let incoming = draw(&shape, storage, 1.0, 0.0);
    let mut layers: Vec<Box<dyn Module>> =
        vec![Box::new(LayerNorm::new(LayerNormConfig::new(shape[1]))?)];
    if gelu {
        layers.push(Box::new(Gelu));
    }
    if p > 0.0 {
        layers.push(Box::new(Dropout::new(p)?));
    }
    let layers = Sequential::new(layers);
    let own = fill(&layers, policy, 0.5, 0.5)?;
    let together = pass(&layers, policy, [&input, &incoming], false)?;
    let alone = pass(&layers, policy, [&input, &incoming], true)?;

    let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
    let exact_in = leaf(&input);
    let [weight, bias] = [0, 1].map(|at| leaf(&own[at]));
    let normal = exact_in.layer_norm([shape[1]], Some(&weight), Some(&bias), 1e-5, false);
    let active = if gelu { normal.gelu("none") } else { normal };
    let exact = if p > 0.0 { active * factors(p, shape, 5)? } else { active };
    (&exact * wide(&incoming)).sum(Kind::Double).backward();
    let all = [exact.detach(), exact_in.grad(), weight.grad(), bias.grad()];

    for (((name, together), (_, alone)), exact) in together.named().zip(alone.named()).zip(&all) {
        let kind = if name == "input" { compute } else { storage };
        assert_eq!((together.kind(), alone.kind()), (kind, kind), "{name}");
        // Separate layers use libtorch's kernel for GELU, so the bits are equal only without GELU.
        assert!(gelu || together.equal(alone), "{name}");
        // Each layer rounds its result, and these rounding errors add up.
        let bound = 3.0 * rounding(kind).max(rounding(storage));
        for (how, seen) in [("together", together), ("alone", alone)] {
            let off = relative(seen, exact);
            assert!(off < bound, "{name}, {how}: error {off}, bound {bound}");
        }
    }
    Ok(())
}

/// The layer is a transformer encoder layer: two sums of a residual and a dropout, each followed by
/// a norm, and a dropout after ReLU. Without dropout, its results in f32 and f64 on CUDA equal
/// those in f64 on the CPU. With the same random numbers, fused layers agree with separate layers
/// up to rounding. In f32 and f64, they agree bit for bit if the width is not a multiple of 128.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_norm_with_residual_and_dropout_equals_f64(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    // The last three shapes, whose width is a multiple of 128, use kernels that process whole rows
    // and sum the gradients of biases in another order.
    #[values([6, 1, 16], [9, 13, 24], [5, 7, 128], [43, 3, 256], [300, 3, 256])] shape: [i64; 3],
    #[values(0.2, 0.0)] dropout: f64,
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(16);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    let config = TransformerEncoderLayerConfig {
        dim_feedforward: 20,
        dropout,
        ..TransformerEncoderLayerConfig::new(shape[2], 2)
    };
    let layer = TransformerEncoderLayer::new(config)?;
    let own = fill(&layer, policy, 1.6 / (shape[2] as f64).sqrt(), 0.1)?;
    // Under autocast, the input of a residual and the gradient of its output are f32, like the
    // parameters.
    let input = draw(&shape, storage, 1.0, 0.0);
    let incoming = draw(&shape, storage, 1.0, 0.0);
    let together = pass(&layer, policy, [&input, &incoming], false)?;
    let alone = pass(&layer, policy, [&input, &incoming], true)?;
    let half = rounding(compute) > 1e-4;
    for ((name, together), (_, alone)) in together.named().zip(alone.named()) {
        let off = relative(together, &wide(alone));
        let bound = if half {
            8.0
        } else if shape[2] % 128 == 0 {
            4.0
        } else {
            0.0
        };
        let bound = bound * rounding(compute);
        assert!(off <= bound, "{name}: error {off}, bound {bound}");
    }
    // These cases are not compared with f64: with dropout, the CPU drops other elements, and in 16
    // bits, ReLU may set other elements to zero than in f64.
    if dropout > 0.0 || half {
        return Ok(());
    }

    let exact_policy = Policy::new(Precision::F64True, Device::Cpu);
    let exact_layer = TransformerEncoderLayer::new(config)?;
    let exact_own = fill(&exact_layer, exact_policy, 0.0, 0.0)?;
    for (exact, own) in exact_own.iter().zip(&own) {
        amp_core::tch::no_grad(|| exact.shallow_clone().copy_(&wide(own)));
    }
    let exact = pass(&exact_layer, exact_policy, [&wide(&input), &wide(&incoming)], false)?;
    for ((name, seen), (_, exact)) in together.named().zip(exact.named()) {
        // Each of about twelve operations rounds its result, and these rounding errors add up.
        let off = relative(seen, exact);
        assert!(off < 12.0 * rounding(compute), "{name}: {off}");
    }
    Ok(())
}

/// If a linear layer follows a norm, the norm writes its output in 16 bits and receives its
/// gradient in 16 bits. The results have the same bits as with a separate cast (`with_a_cast`),
/// even if the linear layer reads a view of the norm's output. If the output is modified or
/// detached first, the linear layer casts it itself.
#[rstest]
#[case::as_it_is(|x: &Tensor| x.shallow_clone(), |x: &Tensor| x * 1.0)]
#[case::a_view(|x: &Tensor| x.unsqueeze(1).squeeze_dim(1), |x: &Tensor| x * 1.0)]
#[case::a_part(|x: &Tensor| x.narrow(0, 0, 3), |x: &Tensor| (x * 1.0).narrow(0, 0, 3))]
#[case::written_to(|x: &Tensor| x.shallow_clone().g_add_scalar_(1.0), |x: &Tensor| x + 1.0)]
#[case::detached(Tensor::detach, |x: &Tensor| (x * 1.0).detach())]
fn a_linear_layer_uses_the_16_bit_output_of_a_norm(
    #[case] between: fn(&Tensor) -> Tensor,
    #[case] with_a_cast: fn(&Tensor) -> Tensor,
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    let _generator = seeded(19);
    let policy = Policy::new(precision, device());
    let norm = LayerNorm::new(LayerNormConfig::new(16))?;
    let linear = Linear::new(LinearConfig::new(16, 8))?;
    let own: Vec<Tensor> = [fill(&norm, policy, 0.5, 0.5)?, fill(&linear, policy, 0.5, 0.0)?]
        .into_iter()
        .flatten()
        .collect();
    let input = draw(&[6, 16], Kind::Float, 1.0, 0.0).to(device());
    let incoming = draw(&[6, 8], Kind::Float, 1.0, 0.0).to(device());
    let around = draw(&[6, 16], Kind::Float, 1.0, 0.0).to(device());
    let run = |between: fn(&Tensor) -> Tensor| -> Result<Vec<Tensor>> {
        let given = input.detach().set_requires_grad(true);
        let cx = Context::new(policy, true);
        let (output, residual) = {
            let _region = policy.autocast()?;
            let normal = norm.forward(&given, &cx)?;
            let residual = (&normal * &around).sum(Kind::Float);
            (linear.forward(&between(&normal), &cx)?, residual)
        };
        let weighted = &output * incoming.narrow(0, 0, output.size()[0]);
        let inputs: Vec<&Tensor> = own.iter().chain([&given]).collect();
        let loss = weighted.sum(Kind::Float) + residual;
        let mut all = Tensor::f_run_backward(&[loss], &inputs, false, false)?;
        all.push(output);
        Ok(all)
    };
    for (at, (taken, cast)) in run(between)?.iter().zip(run(with_a_cast)?).enumerate() {
        assert!(taken.equal(&cast), "{at}");
    }
    Ok(())
}

/// If the number of columns does not fit the vector loads of the kernel, libtorch's kernel runs.
/// The results then equal those of libtorch's operations.
#[test]
fn numbers_of_columns_without_a_kernel_are_libtorchs() -> Result<()> {
    let _generator = seeded(17);
    let policy = Policy::new(Precision::F64True, device());
    let layers = Sequential::new(vec![
        Box::new(LayerNorm::new(LayerNormConfig::new(7))?) as Box<dyn Module>,
        Box::new(Gelu),
    ]);
    let own = fill(&layers, policy, 0.5, 0.5)?;
    let input = draw(&[5, 7], Kind::Double, 1.0, 0.0);
    let seen = pass(&layers, policy, [&input, &Tensor::ones_like(&input)], false)?;
    let exact = wide(&input).layer_norm([7], Some(wide(&own[0])), Some(wide(&own[1])), 1e-5, false);
    assert!(relative(&seen.output, &exact.gelu("none")) < 1e-13);
    Ok(())
}

/// A norm alone has second derivatives, as in PyTorch. A norm that is fused with GELU has none:
/// requesting them is an error on CUDA.
#[test]
fn a_norm_by_itself_has_second_derivatives() -> Result<()> {
    let _generator = seeded(18);
    let policy = Policy::new(Precision::F64True, device());
    let cx = Context::new(policy, true);
    let layer = LayerNorm::new(LayerNormConfig::new(8))?;
    let own = fill(&layer, policy, 0.5, 0.5)?;
    let loss_of = |input: &Tensor, output: Tensor| -> Result<Tensor> {
        let loss = output.square().sum(Kind::Double);
        let grads = Tensor::f_run_backward(&[loss], &[input], true, true)?;
        Ok(grads[0].square().sum(Kind::Double))
    };
    let given = draw(&[5, 8], Kind::Double, 1.0, 0.0).to(device()).set_requires_grad(true);
    loss_of(&given, layer.forward(&given, &cx)?)?.backward();
    let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
    let (exact_in, weight, bias) = (leaf(&given), leaf(&own[0]), leaf(&own[1]));
    let normal = exact_in.layer_norm([8], Some(&weight), Some(&bias), 1e-5, false);
    loss_of(&exact_in, normal)?.backward();
    for (seen, exact) in own.iter().chain([&given]).zip([weight, bias, exact_in]) {
        let off = relative(&seen.grad(), &exact.grad());
        assert!(off < 1e-11, "{off}");
    }

    let with_gelu = Sequential::new(vec![Box::new(layer) as Box<dyn Module>, Box::new(Gelu)]);
    match loss_of(&given, with_gelu.forward(&given, &cx)?) {
        Err(error) => {
            assert!(device().is_cuda());
            let text = error.to_string();
            assert!(text.contains("second derivatives through layer normalisation"), "{text}");
        }
        Ok(loss) => assert!(!device().is_cuda() && loss.requires_grad()),
    }
    Ok(())
}
