//! Tests of the batch normalization of images, alone, followed by ReLU, or followed by the addition
//! of a residual and ReLU. On CUDA (`AMP_DEVICE=cuda`), fused kernels compute these operations. On
//! other devices, they run one after the other. The expected results are computed by libtorch in
//! f64 on the CPU.

use amp_core::{
    Module, Result, TrainerConfig,
    hardware::set_numerics,
    nn::{
        BatchNorm, BatchNormConfig, Context, Conv2d, Conv2dConfig, Flatten, Relu, Sequential,
        Visit, Visitor, named_tensors, parameters,
    },
    optim::{OptimizerConfig, Sgd, TrainingPlan},
    precision::{GradScalerConfig, Policy, Precision},
    tch::{self, Device, Kind, Tensor},
    trainer::{Graph, StepAccess},
};
use rstest::rstest;

use crate::{
    graphs::{Outcome, config, train_on},
    support::{
        bits::{relative, wide},
        device,
        layers::{draw, fill, rounding},
        model::linear,
        needs_cuda, seeded,
    },
};

/// The operations that follow the batch norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    Relu,
    AddRelu,
}

fn run(
    norm: &BatchNorm,
    after: After,
    x: &Tensor,
    residual: &Tensor,
    cx: &Context,
) -> Result<Tensor> {
    match after {
        After::Nothing => norm.forward(x, cx),
        After::Relu => norm.forward_relu(x, cx),
        After::AddRelu => norm.forward_add_relu(x, residual, cx),
    }
}

/// The expected results of batch normalization and the addition of the residual, which libtorch
/// computes in f64 on the CPU. `values` then applies ReLU.
struct Exact {
    leaves: [Tensor; 4],
    statistics: [Tensor; 2],
    sum: Tensor,
}

impl Exact {
    fn new(own: &[Tensor], after: After, input: &Tensor, residual: &Tensor) -> Self {
        let leaf = |tensor: &Tensor| wide(tensor).set_requires_grad(true);
        let leaves = [leaf(input), leaf(residual), leaf(&own[0]), leaf(&own[1])];
        let statistics =
            [0.0, 1.0].map(|value| Tensor::full(own[0].size(), value, (Kind::Double, Device::Cpu)));
        let [x, r, weight, bias] = &leaves;
        let [mean, var] = &statistics;
        let y =
            x.batch_norm(Some(weight), Some(bias), Some(mean), Some(var), true, 0.1, 1e-5, false);
        let sum = if after == After::AddRelu { y + r } else { y };
        Self { leaves, statistics, sum }
    }

    /// Returns the output, the gradients and the batch statistics by name. An input of ReLU that is
    /// close to zero may have another sign in f64 than in the dtype under test. ReLU's mask for the
    /// expected gradient is therefore taken from `seen`, the output under test.
    fn values(
        &self,
        after: After,
        seen: &Tensor,
        incoming: &Tensor,
    ) -> Result<Vec<(&'static str, Tensor)>> {
        let passed = wide(seen).gt(0.0).to_kind(Kind::Double);
        let output =
            if after == After::Nothing { self.sum.shallow_clone() } else { &self.sum * passed };
        output.backward_with(&wide(incoming))?;
        let [x, r, weight, bias] = &self.leaves;
        let expected =
            if after == After::Nothing { self.sum.detach() } else { self.sum.detach().relu() };
        let [mean, var] = self.statistics.each_ref().map(Tensor::shallow_clone);
        Ok(vec![
            ("output", expected),
            ("input", x.grad()),
            ("residual", r.grad()),
            ("weight", weight.grad()),
            ("bias", bias.grad()),
            ("running_mean", mean),
            ("running_var", var),
        ])
    }
}

/// Returns the output, the gradients of the input, the residual, the weight and the bias, and the
/// running statistics.
fn pass(
    norm: &BatchNorm,
    after: After,
    policy: Policy,
    [input, residual, incoming]: [&Tensor; 3],
) -> Result<Vec<(&'static str, Tensor)>> {
    let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
    let [x, r] = [leaf(input), leaf(residual)];
    let own = parameters(norm);
    own.iter().for_each(|parameter| parameter.tensor.shallow_clone().zero_grad());
    let output = {
        let _region = policy.autocast()?;
        run(norm, after, &x, &r, &Context::new(policy, true))?
    };
    output.backward_with(incoming)?;
    let mut seen = vec![("output", output.detach()), ("input", x.grad())];
    if after == After::AddRelu {
        seen.push(("residual", r.grad()));
    }
    let grads = own.iter().map(|parameter| parameter.tensor.grad().copy());
    seen.extend(["weight", "bias"].into_iter().zip(grads));
    for (name, tensor, _) in named_tensors(norm) {
        match name.as_str() {
            "running_mean" => seen.push(("running_mean", tensor.copy())),
            "running_var" => seen.push(("running_var", tensor.copy())),
            "num_batches_tracked" => assert_eq!(tensor.int64_value(&[]), 1),
            _ => {}
        }
    }
    Ok(seen)
}

/// Runs the backward pass from a given gradient of the output.
trait BackwardWith {
    fn backward_with(&self, incoming: &Tensor) -> Result<()>;
}

impl BackwardWith for Tensor {
    fn backward_with(&self, incoming: &Tensor) -> Result<()> {
        Ok((self * incoming).f_sum(Kind::Double)?.f_backward()?)
    }
}

fn channels_last(tensor: &Tensor) -> Tensor {
    let shape = tensor.size();
    let [n, c, h, w] = [shape[0], shape[1], shape[2], shape[3]];
    let lies = tensor.permute([0, 2, 3, 1]).contiguous().view([n, h, w, c]);
    lies.permute([0, 3, 1, 2])
}

/// The results of the kernels differ from those in f64 by at most twice the rounding error of the
/// dtype. The cases have few and many channels, numbers of rows (N·H·W) that no block size divides,
/// and more rows than all blocks process at once. The mean of some channels is far from zero.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn kernels_are_near_f64(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed, Precision::F16True, Precision::Bf16True)]
    precision: Precision,
    #[values([4, 24, 5, 7], [8, 64, 14, 14], [3, 520, 4, 5], [16, 1032, 3, 3], [40, 8, 60, 60])]
    shape: [i64; 4],
    #[values(After::Nothing, After::Relu, After::AddRelu)] after: After,
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(11);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    let shift = Tensor::arange(shape[1], (Kind::Double, Device::Cpu)).fmod(3.0).view([1, -1, 1, 1]);
    let drawn = |scale: f64| draw(&shape, Kind::Double, scale, 0.0);
    let input = (drawn(0.5) + &shift).to_kind(compute);
    let (residual, incoming) = (drawn(1.0).to_kind(compute), drawn(1.0).to_kind(compute));

    let norm = BatchNorm::new(BatchNormConfig::new(shape[1]))?;
    let own = fill(&norm, policy, 0.5, 0.5)?;
    let on_device = |tensor: &Tensor| channels_last(&tensor.to(device()));
    let [x, r, g] = [&input, &residual, &incoming].map(on_device);
    let seen = pass(&norm, after, policy, [&x, &r, &g])?;
    assert_eq!((seen[0].1.kind(), seen[1].1.kind()), (compute, compute));
    assert_eq!(seen[0].1.stride(), x.stride(), "the layout is kept");

    let exact = Exact::new(&own, after, &input, &residual).values(after, &seen[0].1, &incoming)?;
    for (name, tensor) in &seen {
        let (_, exact) = exact.iter().find(|(one, _)| one == name).expect("one of them");
        let bound = match *name {
            "output" | "input" | "residual" => 2.0 * rounding(compute),
            _ => 2.0 * rounding(storage),
        };
        let off = relative(tensor, exact);
        assert!(off < bound, "{name}: error {off}, bound {bound}");
    }
    Ok(())
}

/// Without gradients, fused layers give the same bits as separate layers, on every device, in
/// training and in evaluation, and under every precision.
#[rstest]
fn fused_layers_equal_separate_layers(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values(true, false)] training: bool,
    #[values(16, 12)] channels: i64,
) -> Result<()> {
    let _generator = seeded(3);
    let policy = Policy::new(precision, device());
    let norm = BatchNorm::new(BatchNormConfig::new(channels))?;
    fill(&norm, policy, 0.5, 0.5)?;
    let kind = if precision == Precision::F64True { Kind::Double } else { precision.compute() };
    let [x, r] = [2.0, 1.0]
        .map(|scale| channels_last(&draw(&[4, channels, 6, 6], kind, scale, 0.5).to(device())));
    let cx = Context::new(policy, training);
    let _region = policy.autocast()?;
    let _no_gradients = tch::no_grad_guard();
    for (after, expected) in [
        (After::Relu, norm.forward(&x, &cx)?.relu()),
        (After::AddRelu, (norm.forward(&x, &cx)? + &r).relu()),
    ] {
        let seen = run(&norm, after, &x, &r, &cx)?;
        assert_eq!(seen.kind(), expected.kind());
        assert!(seen.equal(&expected), "{after:?}: {}", relative(&seen, &wide(&expected)));
    }
    Ok(())
}

/// A residual block from `[N, 16, H, W]` to the same shape. It contains every sequence of
/// operations that has a fused kernel.
#[derive(Module)]
#[forward(|x| {
    let y = self.bn1.forward_relu(&conv1(x)?, cx)?;
    self.bn2.forward_add_relu(&conv2(&y)?, x, cx)
})]
struct Residual {
    #[layer(conv2d(16, 16, 3, padding = 1, bias = false))]
    conv1: Conv2d,
    #[layer(batch_norm2d(16))]
    bn1: BatchNorm,
    #[layer(conv2d(16, 16, 3, padding = 1, bias = false))]
    conv2: Conv2d,
    #[layer(batch_norm2d(16))]
    bn2: BatchNorm,
}

/// A layer that reshapes `[N, 64]` to images.
struct Images;

impl Visit for Images {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Images {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_reshape([-1, 1, 8, 8])?)
    }
}

/// Builds a classifier of images with 64 pixels into 10 classes: a convolution and two residual
/// blocks.
fn net() -> Result<Sequential> {
    Ok(Sequential::new(vec![
        Box::new(Images),
        Box::new(Conv2d::new(Conv2dConfig { stride: 2.into(), ..Conv2dConfig::new(1, 16, 2) })?),
        Box::new(BatchNorm::new(BatchNormConfig::new(16))?),
        Box::new(Relu),
        Box::new(Residual::builder().build()?),
        Box::new(Residual::builder().build()?),
        Box::new(Flatten::default()),
        Box::new(linear(256, 10)?),
    ]))
}

fn momentum(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 1e-2, momentum: 0.9, ..Default::default() })
}

/// Trains for three epochs on some digits, with deterministic algorithms on CUDA.
fn train(config: &TrainerConfig) -> Result<Outcome> {
    // `set_numerics` changes a setting of the whole process. `_generator` is also a lock: other
    // tests that train wait until it is dropped.
    let _generator = seeded(7);
    set_numerics(false, device().is_cuda())?;
    let config = TrainerConfig { max_epochs: 3, ..config.clone() };
    let outcome = train_on(&config, net()?, StepAccess::Deferred, momentum, Vec::new());
    set_numerics(false, false)?;
    outcome
}

/// A training run is reproducible, even if its first steps overflow. On CUDA, a run with CUDA
/// graphs has the same results as a run without CUDA graphs.
#[rstest]
fn a_run_is_reproducible(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed)] precision: Precision,
    #[values(2.0_f64.powi(10), 2.0_f64.powi(40))] scale: f64,
) -> Result<()> {
    let config = |graph| {
        config(precision, graph).with(|config| {
            config.numerics.scaler = GradScalerConfig { init_scale: scale, ..Default::default() };
        })
    };
    let [first, again] = [train(&config(Graph::Off))?, train(&config(Graph::Off))?];
    assert_eq!(first.weights, again.weights);
    let overflows = precision == Precision::F16Mixed && scale > 2.0_f64.powi(20);
    assert_eq!(first.record.end.skipped > 0, overflows, "{}", first.record.end.skipped);
    if device().is_cuda() {
        let graphed = train(&config(Graph::On))?;
        assert_eq!(first.weights, graphed.weights);
        assert!(graphed.record.end.replayed > 5, "{}", graphed.record.end.replayed);
    }
    Ok(())
}
