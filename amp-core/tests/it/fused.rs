//! Tests of fused kernels on CUDA (`AMP_DEVICE=cuda`): batch normalization with ReLU and dropout,
//! and dropout alone. The expected results are computed by libtorch in f64 on the CPU.

use amp_core::{
    Module, Result,
    nn::{BatchNorm, BatchNormConfig, Context, Dropout, Relu, Sequential, named_tensors},
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    layers::{draw, factors, fill, pass, rounding},
    model::linear,
    needs_cuda, seeded,
};

#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn fused_layers_equal_separate_layers(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values([2, 4], [130, 36], [1000, 100])] shape: [i64; 2],
    #[values((true, 0.3), (true, 0.0), (false, 0.3))] (relu, p): (bool, f64),
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(11);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    // The mean of the input is far from zero, as after a ReLU.
    let input = draw(&shape, compute, 0.5, 3.0);
    let incoming = draw(&shape, compute, 1.0, 0.0);

    let mut layers: Vec<Box<dyn Module>> =
        vec![Box::new(BatchNorm::new(BatchNormConfig::new(shape[1]))?)];
    if relu {
        layers.push(Box::new(Relu));
    }
    layers.push(Box::new(Dropout::new(p)?));
    let layers = Sequential::new(layers);
    let own = fill(&layers, policy, 0.5, 0.5)?;

    // If a probe reads the values of each tensor, the layers run one by one, with the same bits as
    // when they are fused.
    let together = pass(&layers, policy, [&input, &incoming], false)?;
    let alone = pass(&layers, policy, [&input, &incoming], true)?;
    for ((name, together), (_, alone)) in together.named().zip(alone.named()) {
        assert!(together.equal(alone), "{name}");
    }

    let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
    let exact_in = leaf(&input);
    let [weight, bias] = [0, 1].map(|at| leaf(&own[at]));
    let statistics = |value| Tensor::full([shape[1]], value, (Kind::Double, Device::Cpu));
    let (mean, var) = (statistics(0.0), statistics(1.0));
    let normalise = || {
        exact_in.batch_norm(
            Some(&weight),
            Some(&bias),
            Some(&mean),
            Some(&var),
            true,
            0.1,
            1e-5,
            false,
        )
    };
    drop(normalise());
    let normal = normalise();
    let cut = if relu { normal.relu() } else { normal };
    let exact = if p > 0.0 { cut * factors(p, shape, 5)? } else { cut };
    (&exact * wide(&incoming)).sum(Kind::Double).backward();

    // For a batch of two examples, gradients are not compared: batch norm maps each column to +1
    // and -1, so the terms of a gradient cancel almost completely. Each term is rounded to the
    // dtype of the computation, and the gradient to its own dtype. The bound is twice the larger of
    // the two rounding errors.
    let close = |name: &str, seen: &Tensor, exact: &Tensor, kind: Kind| {
        let bound = 2.0 * rounding(kind).max(rounding(compute));
        let off = relative(seen, exact);
        assert!(shape[0] == 2 || off < bound, "{name}: error {off}, bound {bound}");
    };
    assert_eq!((together.output.kind(), together.input_grad.kind()), (compute, compute));
    let off = relative(&together.output, &exact.detach());
    assert!(off < 2.0 * rounding(compute), "output: {off}");
    close("input", &together.input_grad, &exact_in.grad(), compute);
    close("weight", &together.grads[0], &weight.grad(), storage);
    close("bias", &together.grads[1], &bias.grad(), storage);
    for (name, tensor, _) in named_tensors(&layers) {
        match name.rsplit('.').next() {
            Some("running_mean") => assert!(relative(&tensor, &mean) < 2.0 * rounding(storage)),
            Some("running_var") => assert!(relative(&tensor, &var) < 2.0 * rounding(storage)),
            Some("num_batches_tracked") => assert_eq!(tensor.int64_value(&[]), 2),
            _ => {}
        }
    }
    Ok(())
}

/// The backward pass of a norm also computes the gradient of the bias of the layer before it, by
/// summing the gradient of the norm's input. If another operation also reads the output of that
/// layer, the gradient of the bias must include the gradient from this operation.
#[rstest]
fn a_bias_before_a_norm_has_the_whole_gradient(
    #[values(Precision::F32True, Precision::Bf16Mixed, Precision::Bf16True)] precision: Precision,
    #[values(false, true)] around: bool,
) -> Result<()> {
    let _generator = seeded(21);
    let policy = Policy::new(precision, device());
    let (linear, norm) = (linear(8, 12)?, BatchNorm::new(BatchNormConfig::new(12))?);
    let own = fill(&linear, policy, 0.5, 0.5)?;
    fill(&norm, policy, 0.5, 0.5)?;
    let input = draw(&[130, 8], precision.storage(), 1.0, 0.0).to(device());
    let incoming = draw(&[130, 12], Kind::Float, 1.0, 0.0).to(device());
    let cx = Context::new(policy, true);
    let _region = policy.autocast()?;
    let between = linear.forward(&input, &cx)?;
    // This operation runs before the norm, so its backward pass runs after the norm's. Its gradient
    // arrives only after the norm's kernel has summed the gradient of the bias.
    let other = around.then(|| (&between * &incoming).sum(Kind::Float));
    let own_loss = (norm.forward(&between, &cx)? * &incoming).sum(Kind::Float);
    let loss = other.map_or_else(|| own_loss.shallow_clone(), |other| other + &own_loss);
    let grads = Tensor::f_run_backward(&[loss], &[&between, &own[1]], false, false)?;
    let exact = wide(&grads[0]).sum_dim_intlist(0, false, Kind::Double);
    let all = wide(&grads[0]).abs().sum_dim_intlist(0, false, Kind::Double).max();
    let off = ((wide(&grads[1]) - exact).abs().max() / all).double_value(&[]);
    // libtorch's layers on the CPU round a bias's gradient to the dtype of the computation.
    let kind = if device().is_cuda() { precision.storage() } else { precision.compute() };
    let bound = if kind == Kind::Float { 1e-6 } else { 2.0_f64.powi(-8) };
    assert!(off < bound, "{off}");
    Ok(())
}

/// On CUDA, dropout sets the requested fraction of elements to zero. For a million elements, the
/// fraction is within five standard errors of the requested one. Rows and columns show no pattern,
/// and each forward pass chooses other elements. The gradient is zero exactly at the elements that
/// were set to zero.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn dropout_on_cuda_drops_its_share(#[values(0.1, 0.5)] p: f64) -> Result<()> {
    needs_cuda();
    let _generator = seeded(1);
    let shape = [1000, 1000];
    let first = factors(p, shape, 3)?;
    assert!(first.equal(&factors(p, shape, 3)?), "the same seed drops the same elements");
    let kept = first.gt(0.0).to_kind(Kind::Double);
    let share = |kept: &Tensor| kept.mean(Kind::Double).double_value(&[]);
    let error = (p * (1.0 - p)).sqrt();
    assert!((share(&kept) - (1.0 - p)).abs() < 5.0 * error / 1e3, "{}", share(&kept));
    for dim in [0_i64, 1] {
        let sums = kept.mean_dim(dim, false, Kind::Double) - (1.0 - p);
        let most = sums.abs().max().double_value(&[]);
        assert!(most < 5.0 * error / 1e3_f64.sqrt(), "{most}");
    }
    let neighbours = kept.narrow(1, 0, 999) * kept.narrow(1, 1, 999);
    assert!((share(&neighbours) - (1.0 - p).powi(2)).abs() < 5.0 / 1e3);
    assert_eq!(first.max().double_value(&[]), f64::from((1.0 / (1.0 - p)) as f32));

    let cx = Context::new(Policy::new(Precision::F32True, device()), true);
    let given = Tensor::ones(shape, (Kind::Float, device())).set_requires_grad(true);
    let second = Dropout::new(p)?.forward(&given, &cx)?;
    second.sum(Kind::Float).backward();
    assert!(given.grad().equal(&second));
    assert!(!wide(&second).equal(&first));
    Ok(())
}
