//! Tests that 16-bit convolutions use channels_last on CUDA (`AMP_DEVICE=cuda`), and that tensors
//! on the CPU, in f32 and in f64 do not. Parameters, gradients and optimizer state are always
//! contiguous.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use amp_core::{
    Module, Result, TrainerConfig,
    hardware::set_numerics,
    nn::{
        BatchNorm, BatchNormConfig, Call, Context, Conv2d, Conv2dConfig, Dropout, Flatten, Gelu,
        MaxPool2d, MaxPool2dConfig, Probe, Relu, Sequential, Visit, Visitor, named_tensors,
        parameters, place,
    },
    optim::{Moments, OptimizerConfig, Sgd, TrainingPlan},
    precision::{Policy, Precision},
    tch::{self, Device, Kind, Tensor},
    trainer::{Graph, StepAccess},
    weights::{load, save},
};
use rstest::rstest;
use tempfile::tempdir;

use crate::{
    graphs::{Outcome, config, train_on},
    support::{
        bits::{relative, sha256, wide},
        device,
        model::{digits, linear},
        needs_cuda, seeded,
    },
};

const HALF: [Kind; 2] = [Kind::Half, Kind::BFloat16];

/// Returns the largest relative error of rounding to this dtype.
fn rounding(kind: Kind) -> f64 {
    if kind == Kind::Half { 2.0_f64.powi(-11) } else { 2.0_f64.powi(-8) }
}

/// Returns whether the channels are the innermost dimension in memory.
fn is_channels_last(tensor: &Tensor) -> bool {
    let size = tensor.size();
    let [channels, height, width] = [size[1], size[2], size[3]];
    tensor.stride() == [channels * height * width, 1, channels * width, channels]
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

/// Builds a classifier from images of 64 pixels to 10 classes. It contains convolutions, and every
/// kind of layer that may be between them.
fn net() -> Result<Sequential> {
    let conv = |from, to, kernel_size: i64, padding: i64, bias| {
        Conv2d::new(Conv2dConfig {
            padding: padding.into(),
            bias,
            ..Conv2dConfig::new(from, to, kernel_size)
        })
    };
    Ok(Sequential::new(vec![
        Box::new(Images),
        Box::new(conv(1, 16, 3, 1, false)?),
        Box::new(BatchNorm::new(BatchNormConfig::new(16))?),
        Box::new(Relu),
        Box::new(MaxPool2d::new(MaxPool2dConfig::new(2))?),
        Box::new(Dropout::new(0.2)?),
        Box::new(conv(16, 32, 3, 1, true)?),
        Box::new(Gelu),
        Box::new(conv(32, 16, 1, 0, true)?),
        Box::new(Relu),
        Box::new(Flatten::default()),
        Box::new(linear(256, 10)?),
    ]))
}

/// The output and the gradients of a convolution equal those in f64 for the same rounded inputs, up
/// to a few roundings, and the output is in channels_last. The errors of libtorch's convolution of
/// contiguous tensors are within the same bound.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_layer_on_tensor_cores_is_near_f64(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed, Precision::F16True, Precision::Bf16True)]
    precision: Precision,
    #[values(1, 3, 16)] channels: i64,
    #[values((3, 1, 1), (3, 2, 0), (1, 1, 0))] (kernel_size, stride, padding): (i64, i64, i64),
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(11);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    let options = Conv2dConfig {
        stride: stride.into(),
        padding: padding.into(),
        ..Conv2dConfig::new(channels, 32, kernel_size)
    };
    let layer = Conv2d::new(options)?;
    place(&layer, policy, &BTreeMap::new())?;
    let own = parameters(&layer);
    let [weight, bias] = [&own[0].tensor, &own[1].tensor];
    let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(compute);
    let input = draw(&[8, channels, 10, 10]);
    let side = (10 + 2 * padding - kernel_size) / stride + 1;
    let incoming = draw(&[8, 32, side, side]);
    let cx = Context::new(policy, true);

    // Returns the output, and the gradients of the input, the weight and the bias.
    let run = |forward: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<[Tensor; 4]> {
        let given = input.to(device()).to_kind(storage).set_requires_grad(true);
        let output = {
            let _region = policy.autocast()?;
            forward(&given)?
        };
        (&output * incoming.to(device())).sum(output.kind()).backward();
        let mut grads = [given.grad(), weight.grad(), bias.grad()].map(|grad| grad.copy());
        own.iter().for_each(|parameter| parameter.tensor.shallow_clone().zero_grad());
        let [input, weight, bias] = &mut grads;
        Ok([output, input.shallow_clone(), weight.shallow_clone(), bias.shallow_clone()])
    };
    let ours = run(&|given| layer.forward(given, &cx))?;
    let plain = run(&|given| {
        let (stride, padding) = ([stride; 2], [padding; 2]);
        Ok(given.f_conv2d(weight, Some(bias), stride, padding, [1, 1], 1)?)
    })?;

    let leaf = |tensor: &Tensor| wide(&tensor.to_kind(compute)).set_requires_grad(true);
    let [x, w, b] = [leaf(&input), leaf(weight), leaf(bias)];
    let exact = x.conv2d(&w, Some(&b), [stride; 2], [padding; 2], [1, 1], 1);
    (&exact * wide(&incoming)).sum(Kind::Double).backward();
    let exact = [exact.detach(), x.grad(), w.grad(), b.grad()];
    assert!(is_channels_last(&ours[0]), "{:?}", ours[0].stride());
    assert!(plain[0].is_contiguous());
    assert_eq!(ours[0].kind(), compute);
    assert!(ours[1..].iter().all(|grad| grad.kind() == storage));
    for (at, exact) in exact.iter().enumerate() {
        // The output of the convolution is rounded twice, before and after the bias is added. The
        // bound has room for one more rounding error.
        let bound = 3.0 * rounding(compute);
        let [ours, plain] = [&ours[at], &plain[at]].map(|seen| relative(seen, exact));
        assert!(ours < bound && plain < bound, "{at}: errors {ours} and {plain}, bound {bound}");
    }
    Ok(())
}

/// The first convolution of a model has few input channels, and its input needs no gradient. Its
/// output and the gradients of its parameters equal those in f64 for the same rounded inputs. The
/// images have even and odd sides, and are contiguous or in channels_last.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_first_layer_is_near_f64(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed, Precision::Bf16True)] precision: Precision,
    #[values(1, 3, 4, 5)] channels: i64,
    #[values((7, 3), (7, 0), (5, 2), (4, 1), (3, 1), (3, 2))] (kernel_size, padding): (i64, i64),
    #[values((18, 18), (17, 12))] (height, width): (i64, i64),
    #[values(false, true)] last: bool,
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(12);
    let policy = Policy::new(precision, device());
    let (compute, storage) = (precision.compute(), precision.storage());
    let layer = Conv2d::new(Conv2dConfig {
        stride: 2.into(),
        padding: padding.into(),
        ..Conv2dConfig::new(channels, 16, kernel_size)
    })?;
    place(&layer, policy, &BTreeMap::new())?;
    let own = parameters(&layer);
    let [weight, bias] = [&own[0].tensor, &own[1].tensor];
    let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(compute);
    let input = draw(&[5, channels, height, width]);
    let given = input.to(device()).to_kind(storage);
    let given = match last {
        true => given.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
        false => given,
    };
    let output = {
        let _region = policy.autocast()?;
        layer.forward(&given, &Context::new(policy, true))?
    };
    let incoming = draw(&output.size());
    (&output * incoming.to(device())).sum(Kind::Double).backward();

    let leaf = |tensor: &Tensor| wide(&tensor.to_kind(compute)).set_requires_grad(true);
    let [w, b] = [leaf(weight), leaf(bias)];
    let exact = wide(&input).conv2d(&w, Some(&b), [2; 2], [padding; 2], [1, 1], 1);
    (&exact * wide(&incoming)).sum(Kind::Double).backward();
    assert_eq!(output.size(), exact.size());
    assert!(is_channels_last(&output), "{:?}", output.stride());
    assert_eq!((output.kind(), weight.grad().kind()), (compute, storage));
    assert!(weight.grad().is_contiguous());
    for (name, seen, exact) in [
        ("output", &output, exact.detach()),
        ("weight", &weight.grad(), w.grad()),
        ("bias", &bias.grad(), b.grad()),
    ] {
        let (off, bound) = (relative(seen, &exact), 3.0 * rounding(compute));
        assert!(off < bound, "{name}: error {off}, bound {bound}");
    }
    Ok(())
}

/// A probe that records the output of each module, so that the tests can check its memory layout.
#[derive(Default)]
struct Layouts(RefCell<Vec<(String, Tensor)>>);

impl Probe for Layouts {
    fn ran(&self, call: &Call<'_>) {
        self.0.borrow_mut().push((call.path.to_owned(), call.output.shallow_clone()));
    }
}

/// On CUDA, all 16-bit tensors from the first convolution to the flatten layer are in
/// channels_last. On other devices, no tensor is. Parameters and their gradients are contiguous on
/// all devices.
#[rstest]
fn channels_last_is_used_on_cuda_alone(
    #[values(
        Precision::F32True,
        Precision::F64True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values(true, false)] training: bool,
) -> Result<()> {
    let _generator = seeded(3);
    let policy = Policy::new(precision, device());
    let layers = net()?;
    place(&layers, policy, &BTreeMap::new())?;
    let layouts = Rc::new(Layouts::default());
    let cx = Context::new(policy, training).with_probe(layouts.clone());
    let output = {
        let _region = policy.autocast()?;
        layers.forward(&digits(16)?.place(policy)?.input, &cx)?
    };
    let expected = device().is_cuda() && HALF.contains(&precision.compute());
    let seen = layouts.0.take();
    assert_eq!(seen.len(), 12);
    for (path, tensor) in &seen[1..10] {
        assert_eq!(is_channels_last(tensor), expected, "{path}: {:?}", tensor.stride());
        assert!(expected || tensor.is_contiguous(), "{path}: {:?}", tensor.stride());
    }
    assert!(seen[10..].iter().all(|(_, tensor)| tensor.is_contiguous()));
    output.sum(Kind::Float).backward();
    for parameter in parameters(&layers) {
        let (tensor, grad) = (&parameter.tensor, parameter.tensor.grad());
        assert!(tensor.is_contiguous() && grad.is_contiguous(), "{}", parameter.name);
        assert_eq!(grad.kind(), precision.storage(), "{}", parameter.name);
    }
    Ok(())
}

fn momentum(_: &TrainingPlan) -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 1e-2, momentum: 0.9, ..Default::default() })
}

/// Trains for three epochs on some digits, with deterministic algorithms on CUDA.
fn train(config: &TrainerConfig) -> Result<Outcome> {
    // `set_numerics` changes a setting of the whole process. Until `_generator` is dropped, other
    // tests that train wait.
    let _generator = seeded(7);
    set_numerics(false, device().is_cuda())?;
    let config = TrainerConfig { max_epochs: 3, ..config.clone() };
    let outcome = train_on(&config, net()?, StepAccess::Deferred, momentum, Vec::new());
    set_numerics(false, false)?;
    outcome
}

/// A training run is reproducible, and on CUDA it has the same results with and without CUDA
/// graphs. In some cases, the optimizer state is stored in 8 bits, in blocks that follow the order
/// of the weights in memory.
#[rstest]
fn a_run_is_reproducible(
    #[values(Precision::F16Mixed, Precision::Bf16Mixed, Precision::Bf16True)] precision: Precision,
    #[values(Moments::Full, Moments::EightBit)] moments: Moments,
) -> Result<()> {
    let config = |graph| config(precision, graph).with(|config| config.numerics.moments = moments);
    let [first, again] = [train(&config(Graph::Off))?, train(&config(Graph::Off))?];
    assert_eq!(first.weights, again.weights);
    if device().is_cuda() {
        let graphed = train(&config(Graph::On))?;
        assert_eq!(first.weights, graphed.weights);
        assert!(graphed.record.end.replayed > 20, "{}", graphed.record.end.replayed);
    }
    Ok(())
}

/// A checkpoint of a 16-bit run with channels_last loads into a model without channels_last, and
/// the other way round. The tensors have the same bits and names.
#[test]
fn checkpoints_load_across_layouts() -> Result<()> {
    let folder = tempdir().expect("a temporary folder");
    let path = folder.path().join("weights.safetensors");
    let _generator = seeded(1);
    let placed = |policy| -> Result<Sequential> {
        let layers = net()?;
        place(&layers, policy, &BTreeMap::new())?;
        Ok(layers)
    };
    let half = Policy::new(Precision::F16Mixed, device());
    let [own, other] = [placed(half)?, placed(Policy::new(Precision::F32True, Device::Cpu))?];
    let digests = |layers: &Sequential| -> Vec<(String, String)> {
        let tensors = named_tensors(layers).into_iter();
        tensors.map(|(name, tensor, _)| (name, sha256(&tensor.to(Device::Cpu)))).collect()
    };
    let step = |layers: &Sequential, policy: Policy| -> Result<()> {
        let output = {
            let _region = policy.autocast()?;
            layers.forward(&digits(16)?.place(policy)?.input, &Context::new(policy, true))?
        };
        output.square().sum(Kind::Float).backward();
        for parameter in parameters(layers) {
            let mut tensor = parameter.tensor;
            let _ = tch::no_grad(|| tensor.f_sub_(&(tensor.grad() * 1e-3)))?;
            tensor.zero_grad();
        }
        Ok(())
    };
    step(&own, half)?;
    save(&own, &path, BTreeMap::new())?;
    assert_ne!(digests(&own), digests(&other));
    load(&other, &path)?;
    assert_eq!(digests(&own), digests(&other));
    step(&other, Policy::new(Precision::F32True, Device::Cpu))?;
    save(&other, &path, BTreeMap::new())?;
    assert_ne!(digests(&own), digests(&other));
    load(&own, &path)?;
    assert_eq!(digests(&own), digests(&other));
    step(&own, half)
}

/// Dropout of a channels_last tensor returns a channels_last tensor. The gradient has zeros at the
/// dropped elements, in any layout.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn dropout_keeps_the_layout(#[values(false, true)] last: bool) -> Result<()> {
    needs_cuda();
    let _generator = seeded(5);
    let options = (Kind::Float, device());
    let ones = match last {
        true => Tensor::ones([4, 5, 6, 8], options).permute([0, 3, 1, 2]),
        false => Tensor::ones([4, 8, 5, 6], options),
    };
    let given = ones.set_requires_grad(true);
    let cx = Context::new(Policy::new(Precision::F32True, device()), true);
    let output = Dropout::new(0.5)?.forward(&given, &cx)?;
    assert_eq!(is_channels_last(&output), last);
    let incoming = Tensor::randn([4, 8, 5, 6], options);
    (&output * &incoming).sum(Kind::Float).backward();
    assert!(given.grad().equal(&(&output * &incoming)));
    let dropped = output.eq(0.0).sum(Kind::Int64).int64_value(&[]);
    assert!((1..output.numel() as i64).contains(&dropped));
    Ok(())
}
