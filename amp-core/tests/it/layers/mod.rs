//! Tests of layers against torch.nn: outputs, gradients, initial weights, and dtypes under
//! autocast.

mod cases;
mod pair_cases;
mod pooling_cases;
mod random;
mod several;
mod several_cases;

use amp_core::{
    Module, Result,
    nn::{
        ChannelShuffle, Context, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Forward, GroupNorm,
        GroupNormConfig, InstanceNorm, InstanceNormConfig, Interpolation, MaxUnpool1d,
        MaxUnpool1dConfig, Padding, PixelShuffle, Unflatten, Upsample, UpsampleConfig,
        named_tensors, parameters, place,
    },
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;
use serde_json::Value;

use self::cases::build;
use crate::support::{
    bits::{assert_bits, from_bits},
    device, message,
    oracle::{Lcg, integer, oracle, text},
    seeded,
};

fn shape(value: &Value) -> Vec<i64> {
    serde_json::from_value(value.clone()).expect("a list of sizes")
}

/// Builds the layer and its input. Fills parameters and inputs with the same numbers as the script
/// that recorded PyTorch's results. Also returns the generator of these numbers, because its next
/// numbers are the gradients of the outputs.
fn filled(
    name: &str,
    case: &Value,
    seed: u64,
    precision: Precision,
) -> Result<(Box<dyn Module>, Tensor, Lcg)> {
    let mut lcg = Lcg(seed);
    let layer = build(name)?;
    place(&layer, Policy::new(precision, device()), &Default::default())?;
    let kind = precision.storage();
    let x = lcg.tensor(&shape(&case["shape"]), 64.0).to_kind(kind).to_device(device());
    let recorded = case["parameters"].as_object().expect("parameters");
    let own = parameters(&layer);
    assert_eq!(own.len(), recorded.len(), "{name}: parameters");
    for parameter in own {
        let expected =
            recorded.get(&parameter.name).unwrap_or_else(|| panic!("{name}: {}", parameter.name));
        assert_eq!(parameter.tensor.size(), shape(expected), "{name}: {}", parameter.name);
        let values = lcg.tensor(&parameter.tensor.size(), 256.0);
        tch_copy(&parameter.tensor, &values);
    }
    Ok((layer, x.set_requires_grad(true), lcg))
}

fn tch_copy(to: &Tensor, from: &Tensor) {
    amp_core::tch::no_grad(|| to.shallow_clone().copy_(from));
}

#[track_caller]
fn near(seen: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let numbers = |tensor: &Tensor| -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double).reshape([-1])).expect("numbers")
    };
    let (seen, expected) = (numbers(seen), numbers(expected));
    assert_eq!(seen.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-300_f64, |most, value| most.max(value.abs()));
    for (at, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
        let off = (seen - expected).abs() / largest;
        assert!(off <= tolerance, "{what}[{at}]: found {seen}, expected {expected}");
    }
}

/// The parameters have torch's names and shapes. In f64, output and gradients equal torch's.
#[test]
fn layers_equal_torchs() -> Result<()> {
    let oracle = oracle!("layers.json");
    let seed = integer(&oracle, "seed").cast_unsigned();
    for (name, case) in oracle["cases"].as_object().expect("cases") {
        let (layer, x, mut lcg) = filled(name, case, seed, Precision::F64True)?;
        let cx = Context::new(Policy::new(Precision::F64True, device()), true);
        let output = layer.forward(&x, &cx)?;
        assert_eq!(output.size(), shape(&case["output_shape"]), "{name}");
        // On CUDA, libtorch's kernels of hardsigmoid and hardswish contain constants that were
        // rounded to f32.
        let narrow = device().is_cuda() && matches!(name.as_str(), "hardsigmoid" | "hardswish");
        let tolerance = if narrow { 1e-6 } else { 1e-12 };
        near(&output, &from_bits(Kind::Double, text(case, "output")), tolerance, name);
        if let Some(buffers) = case["running"].get("buffers").and_then(Value::as_object) {
            for (buffer, bits) in buffers {
                let own = named_tensors(&layer).into_iter().find(|(own, ..)| own == buffer);
                let expected = from_bits(Kind::Double, bits.as_str().expect("bits"));
                near(&own.expect("the buffer").1, &expected, 1e-12, &format!("{name}: {buffer}"));
            }
            let evaluating = Context::new(Policy::new(Precision::F64True, device()), false);
            let evaluated = layer.forward(&x, &evaluating)?;
            let expected = from_bits(Kind::Double, text(&case["running"], "evaluated"));
            near(&evaluated, &expected, 1e-12, &format!("{name}: evaluated"));
        }
        let factor = lcg.tensor(&output.size(), 64.0).to_kind(Kind::Double).to_device(device());
        (output * factor).sum(Kind::Double).f_backward()?;
        // torch computes 1/α in f32 in the derivative of CELU (derivatives.yaml:
        // `alpha.toFloat()`).
        let tolerance = if name == "celu" || narrow { 1e-6 } else { 1e-11 };
        let expected = from_bits(Kind::Double, text(case, "input_grad"));
        near(&x.grad(), &expected, tolerance, &format!("{name}: input"));
        for parameter in parameters(&layer) {
            let expected = from_bits(Kind::Double, text(&case["grads"], &parameter.name));
            near(
                &parameter.tensor.grad(),
                &expected,
                1e-11,
                &format!("{name}: {}", parameter.name),
            );
        }
    }
    Ok(())
}

/// Under autocast, the output of each layer has the same dtype as in torch, and the same values up
/// to the rounding of bf16.
#[test]
fn layers_under_autocast_equal_torchs() -> Result<()> {
    let oracle = oracle!("layers.json");
    let seed = integer(&oracle, "seed").cast_unsigned();
    for (name, case) in oracle["cases"].as_object().expect("cases") {
        let (layer, x, _) = filled(name, case, seed, Precision::Bf16Mixed)?;
        let policy = Policy::new(Precision::Bf16Mixed, device());
        let output = {
            let _autocast = policy.autocast()?;
            layer.forward(&x, &Context::new(policy, true))?
        };
        // The dtypes were recorded on the CPU. torch's autocast uses other lists of operations on
        // CUDA.
        if !device().is_cuda() {
            let dtype = if output.kind() == Kind::BFloat16 { "bf16" } else { "f32" };
            assert_eq!(dtype, text(case, "autocast_dtype"), "{name}");
        }
        let expected = from_bits(Kind::Float, text(case, "autocast_output"));
        near(&output, &expected, 2f64.powi(-6), name);
    }
    Ok(())
}

/// With the same seed, the initial weights equal torch's.
#[rstest]
#[case("conv1d dilated")]
#[case("conv2d rectangular")]
#[case("conv_transpose2d")]
#[case("conv3d")]
#[case("group_norm")]
fn initial_weights_equal_torchs(#[case] name: &str) -> Result<()> {
    let oracle = oracle!("layers.json");
    let _section = seeded(0);
    for parameter in parameters(&build(name)?) {
        let expected = text(&oracle["initial"][name], &parameter.name);
        assert_bits(&parameter.tensor, expected, &format!("{name}: {}", parameter.name));
    }
    Ok(())
}

#[test]
fn invalid_options_are_refused() -> Result<()> {
    let refused = |layer: Result<()>, says: &str| {
        let text = message(layer);
        assert!(text.contains(says), "{text}");
    };
    let groups = Conv2dConfig { groups: 3, ..Conv2dConfig::new(4, 6, 3) };
    refused(
        Conv2d::new(groups).map(drop),
        "must divide the numbers of input and output channels, 4 and 6",
    );
    let same =
        Conv1dConfig { padding: Padding::Same, stride: 2.into(), ..Conv1dConfig::new(4, 6, 3) };
    refused(Conv1d::new(same).map(drop), "padding `same` is supported only for stride 1");
    refused(
        GroupNorm::new(GroupNormConfig::new(3, 4)).map(drop),
        "num_groups is 3, but must divide num_channels, 4",
    );
    let twice = UpsampleConfig { scale_factor: 2.into(), ..UpsampleConfig::new() };
    let up = |config| Upsample::new(config).map(drop);
    refused(up(UpsampleConfig { align_corners: true, ..twice }), "align_corners has no effect");
    refused(up(UpsampleConfig { scale_factor: 0.into(), ..twice }), "must be above 0");
    refused(up(UpsampleConfig { size: [3, 0].into(), ..UpsampleConfig::new() }), "at least 1");
    refused(
        up(UpsampleConfig { size: 3.into(), ..twice }),
        "set exactly one of size and scale_factor",
    );
    refused(up(UpsampleConfig::new()), "set exactly one of size and scale_factor");
    refused(Unflatten::new(1, [-1, 2, -1]).map(drop), "except that one may be -1");
    refused(PixelShuffle::new(0).map(drop), "must be at least 1");
    let cx = Context::new(Policy::new(Precision::F32True, device()), true);
    let norm = InstanceNorm::new(InstanceNormConfig::new(4))?;
    let x = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, device()));
    refused(
        norm.forward(&x(&[2, 4, 1]), &cx).map(drop),
        "only one value, so its variance cannot be computed",
    );
    refused(norm.forward(&x(&[2, 3, 5]), &cx).map(drop), "must be [batch, 4, …]");
    let cubic = Upsample::new(UpsampleConfig { mode: Interpolation::Bicubic, ..twice })?;
    refused(
        cubic.forward(&x(&[1, 2, 5]), &cx).map(drop),
        "Bicubic with size or scale_factor All(2.0) does not support an input of shape [1, 2, 5]",
    );
    let image = Upsample::new(UpsampleConfig { size: [3, 4].into(), ..UpsampleConfig::new() })?;
    refused(image.forward(&x(&[1, 2, 5]), &cx).map(drop), "does not support an input of shape");
    let shuffle = ChannelShuffle::new(3)?;
    refused(shuffle.forward(&x(&[1, 4, 2]), &cx).map(drop), "must be a multiple of 3");
    let unpool = MaxUnpool1d::new(MaxUnpool1dConfig::new(2))?;
    let places = Tensor::zeros([1, 2, 5], (Kind::Int64, device()));
    refused(
        unpool.forward_with((&x(&[1, 2, 5]), &places, Some(&[12])), &cx).map(drop),
        "must differ from the default size [10] by less than the stride [2]",
    );
    Ok(())
}

/// If `#[layer(…)]` attributes with options build the layers of a model, the parameters have the
/// expected names and shapes.
#[test]
fn attributes_build_the_same_layers() -> Result<()> {
    let net = {
        let _section = seeded(0);
        Net::builder().build()?
    };
    let cx = Context::new(Policy::new(Precision::F32True, amp_core::tch::Device::Cpu), true);
    let x = Tensor::ones([2, 3, 8, 10], (Kind::Float, amp_core::tch::Device::Cpu));
    assert_eq!(net.forward(&x, &cx)?.size(), [2, 5]);
    let sizes: Vec<_> =
        parameters(&net).into_iter().map(|one| (one.name, one.tensor.size())).collect();
    let expected: [(&str, &[i64]); 11] = [
        ("body.0.weight", &[6, 3, 3, 5]),
        ("body.0.bias", &[6]),
        ("body.1.weight", &[6]),
        ("body.1.bias", &[6]),
        ("body.2.weight", &[6]),
        ("body.4.weight", &[6, 2, 2, 2]),
        ("body.4.bias", &[4]),
        ("body.6.weight", &[4, 1, 3, 3]),
        ("body.6.bias", &[4]),
        ("head.weight", &[5, 4]),
        ("head.bias", &[5]),
    ];
    for ((name, size), (expected_name, expected_size)) in sizes.iter().zip(expected) {
        assert_eq!((name.as_str(), size.as_slice()), (expected_name, expected_size));
    }
    assert_eq!(sizes.len(), expected.len());
    Ok(())
}

#[derive(amp_core::LightningModule)]
#[loss(cross_entropy)]
#[optimizer(sgd, lr = 0.1)]
struct Net {
    #[layer(sequential(
        conv2d(3, 6, [3, 5], padding = same, padding_mode = reflect),
        group_norm(2, 6),
        prelu(num_parameters = 6),
        max_pool2d([2, 1], stride = [2, 1]),
        conv_transpose2d(6, 4, 2, stride = 2, groups = 2),
        leaky_relu(negative_slope = 0.2),
        conv2d(4, 4, 3, groups = 4, dilation = 2, padding = [2, 2]),
        upsample(scale_factor = 2, mode = bilinear),
        upsample(size = [5, 4]),
        channel_shuffle(2),
        adaptive_avg_pool2d(1),
        flatten(start_dim = 1),
        unflatten(1, [2, -1]),
        flatten,
    ))]
    body: amp_core::nn::Sequential,
    #[layer(linear(4, 5))]
    head: amp_core::nn::Linear,
}
