//! Tests of layers that use random numbers: RReLU, fractional max pooling and feature alpha
//! dropout.

use amp_core::{
    Module, Result,
    nn::{
        FeatureAlphaDropout, FractionalMaxPool2d, FractionalMaxPool2dConfig, FractionalMaxPool3d,
        FractionalMaxPool3dConfig, LpPool2d, LpPool2dConfig, PerDimension, Rrelu, RreluConfig,
    },
    precision::{Policy, Precision},
    prelude::*,
};
use rstest::rstest;

use crate::support::{device, message, seeded};

fn context(trains: bool) -> Context {
    Context::new(Policy::new(Precision::F32True, device()), trains)
}

fn drawn(shape: &[i64], kind: Kind) -> Tensor {
    let _generator = seeded(3);
    Tensor::randn(shape, (kind, device()))
}

/// In training, each negative element is multiplied by its own slope, a random number between
/// `lower` and `upper`. In evaluation, the slope is the mean of the two limits. The gradient of a
/// negative element is its slope.
#[test]
fn rrelu_draws_slopes() -> Result<()> {
    let x = drawn(&[40_000], Kind::Double).set_requires_grad(true);
    let (lower, upper) = (0.1, 0.7);
    let layer = Rrelu::new(RreluConfig { lower, upper })?;
    let y = {
        let _generator = seeded(7);
        layer.forward(&x, &context(true))?
    };
    y.sum(Kind::Double).backward();
    let negative = x.lt(0.0);
    let slopes = x.grad().masked_select(&negative);
    let used = (&y / &x).masked_select(&negative);
    assert!((used - &slopes).abs().max().double_value(&[]) < 1e-12);
    assert_eq!(x.grad().masked_select(&negative.logical_not()).min().double_value(&[]), 1.0);
    // The mean, standard deviation, minimum and maximum of the slopes of about 20 000 elements are
    // compared with those of the uniform distribution.
    let width = upper - lower;
    let spread = width / 12.0_f64.sqrt();
    for (seen, expected) in [
        (slopes.mean(Kind::Double), (lower + upper) / 2.0),
        (slopes.std(true), spread),
        (slopes.min(), lower),
        (slopes.max(), upper),
    ] {
        let seen = seen.double_value(&[]);
        assert!((seen - expected).abs() < 5.0 * spread / 20_000_f64.sqrt(), "{seen}: {expected}");
    }
    assert!(slopes.min().double_value(&[]) >= lower && slopes.max().double_value(&[]) <= upper);
    let evaluated = layer.forward(&x, &context(false))?;
    let expected = x.maximum(&(&x * ((lower + upper) / 2.0)));
    assert!((evaluated - expected).abs().max().double_value(&[]) < 1e-15);
    Ok(())
}

/// Each forward pass of fractional max pooling draws random numbers in the dtype of the input. The
/// random numbers determine the windows. If the same numbers are passed to `forward_with_samples`,
/// the output is the same.
#[rstest]
fn fractional_pools_draw_their_windows(
    #[values(Kind::Float, Kind::Double)] kind: Kind,
) -> Result<()> {
    let images = drawn(&[4, 3, 9, 11], kind);
    let volumes = drawn(&[2, 3, 6, 7, 5], kind);
    let of_images = FractionalMaxPool2d::new(FractionalMaxPool2dConfig {
        output_ratio: 0.6.into(),
        ..FractionalMaxPool2dConfig::new(2)
    })?;
    let of_volumes = FractionalMaxPool3d::new(FractionalMaxPool3dConfig {
        output_size: [3, 4, 2].into(),
        ..FractionalMaxPool3dConfig::new(2)
    })?;
    let samples = |shape: &[i64]| {
        let _generator = seeded(5);
        Tensor::rand(shape, (kind, device()))
    };
    let cx = context(true);
    let pooled = {
        let _generator = seeded(5);
        of_images.forward(&images, &cx)?
    };
    assert_eq!(pooled.size(), [4, 3, 5, 6]);
    let expected = of_images.forward_with_samples(&images, &samples(&[4, 3, 2]), &cx)?.0;
    assert!(pooled.equal(&expected));
    let others = {
        let _generator = seeded(6);
        of_images.forward(&images, &cx)?
    };
    assert!(!pooled.equal(&others), "another seed draws other windows");
    let (pooled, places) = {
        let _generator = seeded(5);
        of_volumes.forward_with_indices(&volumes, &cx)?
    };
    assert_eq!(pooled.size(), [2, 3, 3, 4, 2]);
    let expected = of_volumes.forward_with_samples(&volumes, &samples(&[2, 3, 3]), &cx)?.0;
    assert!(pooled.equal(&expected));
    let found = volumes.flatten(2, -1).gather(2, &places.flatten(2, -1), false);
    assert!(found.equal(&pooled.flatten(2, -1)));
    Ok(())
}

/// Feature alpha dropout either sets all elements of a channel to one value or keeps the whole
/// channel.
#[test]
fn feature_alpha_dropout_drops_channels() -> Result<()> {
    let x = drawn(&[50, 40, 3, 2], Kind::Double);
    let p = 0.25;
    let layer = FeatureAlphaDropout::new(p)?;
    let _generator = seeded(7);
    let y = layer.forward(&x, &context(true))?.flatten(2, -1);
    let alpha = -1.758_099_340_847_376_6_f64;
    let a = 1.0 / ((1.0 - p) * (1.0 + p * alpha * alpha)).sqrt();
    let b = -a * alpha * p;
    let is_dropped = (&y - (a * alpha + b)).abs().lt(1e-12).all_dim(2, false);
    let kept = (&y - (x.flatten(2, -1) * a + b)).abs().lt(1e-12).all_dim(2, false);
    assert!(bool::try_from(is_dropped.logical_xor(&kept).all())?);
    let share = is_dropped.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / 2000.0).sqrt(), "{share}");
    assert!(layer.forward(&x, &context(false))?.equal(&x), "in evaluation nothing is dropped");
    Ok(())
}

#[test]
fn options_that_give_no_layer_are_refused() -> Result<()> {
    let refused = |layer: Result<()>, says: &str| {
        let text = message(layer);
        assert!(text.contains(says), "{text}");
    };
    for (lower, upper) in [(0.5, 0.2), (0.1, f64::INFINITY)] {
        let layer = Rrelu::new(RreluConfig { lower, upper });
        refused(layer.map(drop), "both must be finite, and lower must be at most upper");
    }
    refused(LpPool2d::new(LpPool2dConfig::new(0.0, 2)).map(drop), "must be a number above 0");
    let pool = |output_size, output_ratio| {
        let windows = FractionalMaxPool2dConfig::new(2);
        let config = FractionalMaxPool2dConfig { output_size, output_ratio, ..windows };
        FractionalMaxPool2d::new(config)
    };
    let none = || PerDimension::None;
    refused(pool(none(), no_ratio()).map(drop), "set exactly one of output_size and output_ratio");
    refused(
        pool(3.into(), 0.5.into()).map(drop),
        "set exactly one of output_size and output_ratio",
    );
    refused(pool(0.into(), no_ratio()).map(drop), "output_size must be at least 1");
    refused(pool(none(), 1.0.into()).map(drop), "above 0 and below 1");
    refused(pool([1, 2, 3].into(), no_ratio()).map(drop), "one number for each of 2 dimensions");
    let flat = Tensor::zeros([3, 4, 5], (Kind::Float, device()));
    let pooled = pool(3.into(), no_ratio())?.forward(&flat, &context(true));
    refused(pooled.map(drop), "must be [batch, channels, …] with 2 more dimensions");
    let dropped = FeatureAlphaDropout::new(0.5)?.forward(&flat.view([3, 20]), &context(true));
    refused(dropped.map(drop), "use `alpha_dropout` to drop single elements");
    Ok(())
}

fn no_ratio() -> PerDimension<f64> {
    PerDimension::None
}

/// `#[layer(…)]` attributes can build these layers, and also layers with two inputs.
#[test]
fn attributes_build_the_layers() -> Result<()> {
    let _section = seeded(0);
    let net = Net::builder().build()?;
    let one = drawn(&[2, 3, 12, 12], Kind::Float).to_device(Device::Cpu);
    let cx = Context::new(Policy::new(Precision::F32True, Device::Cpu), true);
    let (products, cosine, distance) = net.forward(&one, &(&one * 2.0), &cx)?;
    assert_eq!(products.size(), [2, 5]);
    assert!((cosine - 1.0).abs().max().double_value(&[]) < 1e-5);
    assert_eq!(distance.size(), [2, 1]);
    Ok(())
}

#[derive(Module)]
#[forward(|one, other: &Tensor| -> Result<(Tensor, Tensor, Tensor)> {
    let (one, other) = (body(one)?, body(other)?);
    Ok((products(&one, &other)?, cosine(&one, &one)?, distance(&one, &other)?))
})]
struct Net {
    #[layer(sequential(
        lp_pool2d(2, 2),
        rrelu(lower = 0.2, upper = 0.3),
        feature_alpha_dropout(0.1),
        fractional_max_pool2d(2, output_ratio = 0.5),
        fractional_max_pool2d([1, 2], output_size = [2, 2]),
        flatten,
    ))]
    body: Sequential,
    #[layer(bilinear(12, 12, 5, bias = false))]
    products: Bilinear,
    #[layer(cosine_similarity(eps = 1e-6))]
    cosine: CosineSimilarity,
    #[layer(pairwise_distance(p = 1.0, keepdim = true))]
    distance: PairwiseDistance,
}
