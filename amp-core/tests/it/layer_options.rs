//! Tests of layer options that decide which tensors a layer has, and of dropout of whole channels.

use amp_core::{
    nn::{
        BatchNormConfig, ChannelDropout, Context, LayerNormConfig, Softplus, SoftplusConfig,
        named_tensors,
    },
    precision::Policy,
    prelude::*,
};

use crate::support::{bits::values, message, seeded};

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Options {
    #[layer(sequential(
        batch_norm1d(4, affine = false),
        batch_norm1d(4, track_running_stats = false),
        layer_norm(4, elementwise_affine = false),
        layer_norm(4, bias = false),
        rms_norm(4, elementwise_affine = false),
        transformer_encoder_layer(4, 2, dim_feedforward = 8, bias = false),
        hardshrink(lambd = 0.1),
        softshrink(lambd = 0.1),
        tanhshrink,
        threshold(-1.0, 0.0),
        softmin(-1),
    ))]
    all: Sequential,
    #[layer(transformer_encoder(4, 2, 1, bias = false, norm = true))]
    encoder: amp_core::nn::TransformerEncoder,
    #[layer(sequential(dropout1d(0.5), dropout2d(0.5), dropout3d(0.5)))]
    channels: Sequential,
    #[layer(sequential(layer_norm([4, 4], elementwise_affine = false), rms_norm([4, 4], elementwise_affine = false)))]
    several: Sequential,
    #[layer(sequential(reflection_pad2d(1), replication_pad2d([1, 2]), zero_pad2d(0), circular_pad2d([0, 1])))]
    pads: Sequential,
}

/// If an option removes a tensor from a layer, the layer has no tensor of this name, as in torch.
#[test]
fn options_leave_tensors_out() -> Result<()> {
    let _section = seeded(1);
    let model = Options::builder().build()?;
    let names: Vec<String> = named_tensors(&model).into_iter().map(|(name, ..)| name).collect();
    let layer = [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ];
    let norms = ["norm1.weight", "norm2.weight"];
    let layer = || layer.iter().chain(&norms).copied();
    let mut expected = vec![
        "all.0.running_mean".to_owned(),
        "all.0.running_var".to_owned(),
        "all.0.num_batches_tracked".to_owned(),
        "all.1.weight".to_owned(),
        "all.1.bias".to_owned(),
        "all.3.weight".to_owned(),
    ];
    expected.extend(layer().map(|name| format!("all.5.{name}")));
    expected.extend(layer().map(|name| format!("encoder.layers.0.{name}")));
    expected.push("encoder.norm.weight".to_owned());
    let (mut names, count) = (names, expected.len());
    assert_eq!(names.len(), count, "{names:?}");
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    let input = Tensor::f_randn([3, 4, 4], (Kind::Float, Device::Cpu))?;
    let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
    assert_eq!(model.all.forward(&input, &cx)?.size(), [3, 4, 4]);
    assert_eq!(model.pads.forward(&input.unsqueeze(0), &cx)?.size(), [1, 3, 8, 12]);
    assert_eq!(model.several.forward(&input, &cx)?.size(), [3, 4, 4]);
    let text = message(LayerNorm::new(LayerNormConfig::new([3, 0])));
    assert_eq!(
        text,
        "layer norm: normalized_shape is [3, 0], but must have at least one size, and each size must be at least 1"
    );
    let text = message(amp_core::nn::ReflectionPad2d::new([1, -1]));
    assert_eq!(text, "padding is -1, but must be at least 0");
    Ok(())
}

/// Without running statistics, a batch norm normalizes each batch by the mean and variance of this
/// batch, in training and in evaluation. A single value has no variance and is refused.
#[test]
fn batches_are_their_own_statistics() -> Result<()> {
    let _section = seeded(2);
    let norm =
        BatchNorm::new(BatchNormConfig { track_running_stats: false, ..BatchNormConfig::new(3) })?;
    let input = Tensor::f_randn([5, 3], (Kind::Double, Device::Cpu))? * 7.0 + 2.0;
    for training in [true, false] {
        let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), training);
        let output = norm.forward(&input.to_kind(Kind::Float), &cx)?.to_kind(Kind::Double);
        let mean = input.mean_dim([0].as_slice(), true, Kind::Double);
        let variance = (&input - &mean).square().mean_dim([0].as_slice(), true, Kind::Double);
        let expected = (&input - mean) / (variance + 1e-5).sqrt();
        assert!((output - expected).abs().max().double_value(&[]) < 1e-5);
        let text = message(norm.forward(&Tensor::zeros([1, 3], (Kind::Float, Device::Cpu)), &cx));
        assert!(text.contains("a variance needs at least two values"), "{text}");
    }
    Ok(())
}

/// Dropout of channels sets whole channels to 0 with the requested probability and scales all
/// others. In evaluation, it changes nothing.
#[test]
fn channels_are_dropped_whole() -> Result<()> {
    let _section = seeded(3);
    let dropout = ChannelDropout::new(0.25)?;
    let input = Tensor::ones([50, 40, 3, 2], (Kind::Float, Device::Cpu));
    let policy = Policy::new(Precision::F32True, Device::Cpu);
    let output = dropout.forward(&input, &Context::new(policy, true))?;
    let channels = output.reshape([2000, 6]);
    let first = values(&channels.select(1, 0));
    for at in 1..6 {
        assert_eq!(values(&channels.select(1, at)), first);
    }
    assert!(first.iter().all(|value| *value == 0.0 || *value == f64::from(1.0 / 0.75_f32)));
    let dropped = first.iter().filter(|value| **value == 0.0).count() as f64;
    assert!((dropped - 500.0).abs() <= 5.0 * (2000.0_f64 * 0.25 * 0.75).sqrt(), "{dropped}");
    let kept = dropout.forward(&input, &Context::new(policy, false))?;
    assert!(kept.equal(&input));
    let text = message(dropout.forward(&input.reshape([2000, 6]), &Context::new(policy, true)));
    assert!(text.starts_with("dropout of channels: the input is [2000, 6]"), "{text}");
    assert!(message(ChannelDropout::new(1.5)).contains("the probability must be in [0, 1]"));
    Ok(())
}

/// Softplus in f16 is finite. Its values and derivatives equal those in f64 up to rounding, also
/// where eˣ exceeds the largest f16 number.
#[test]
fn softplus_in_f16_does_not_overflow() -> Result<()> {
    let layer = Softplus::new(SoftplusConfig::new())?;
    let x = Tensor::from_slice(&[-3.0, 0.0, 5.0, 10.9, 11.0, 11.1, 12.0, 19.0, 20.5, 300.0_f64]);
    let run = |kind: Kind| -> Result<[Tensor; 2]> {
        let x = x.to_kind(Kind::Half).to_kind(kind).set_requires_grad(true);
        let precision = if kind == Kind::Half { Precision::F16True } else { Precision::F64True };
        let output = layer.forward(&x, &Context::new(Policy::new(precision, Device::Cpu), true))?;
        output.sum(kind).backward();
        Ok([output, x.grad()].map(|tensor| tensor.to_kind(Kind::Double)))
    };
    let (found, expected) = (run(Kind::Half)?, run(Kind::Double)?);
    for (found, expected) in found.iter().zip(&expected) {
        assert!(found.allclose(expected, 2e-3, 0.0, false), "{found:?} is not {expected:?}");
    }
    Ok(())
}
