//! Tests of stochastic depth, which drops whole examples, and of alpha dropout.

use amp_core::{
    Module, Result,
    nn::{AlphaDropout, Context, StochasticDepth},
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{device, seeded};

fn context(trains: bool) -> Context {
    Context::new(Policy::new(Precision::F32True, device()), trains)
}

/// Stochastic depth sets whole examples to zero. With the same seed, it chooses the same examples
/// as torchvision's operator.
#[rstest]
fn stochastic_depth_drops_examples(
    #[values(0.25, 1.0)] p: f64,
    #[values(Kind::Float, Kind::BFloat16)] kind: Kind,
) -> Result<()> {
    let x = {
        let _generator = seeded(3);
        Tensor::randn([64, 3, 2], (kind, device()))
    };
    let path = StochasticDepth::new(p)?;
    let dropped = {
        let _generator = seeded(7);
        path.forward(&x, &context(true))?
    };
    let kept = {
        let _generator = seeded(7);
        Tensor::empty([64, 1, 1], (kind, device())).f_bernoulli_float_(1.0 - p)?
    };
    let expected = if p == 1.0 { x.zeros_like() } else { &x * (&kept / (1.0 - p)) };
    assert!(dropped.equal(&expected), "{dropped}");
    let share = kept.mean(Kind::Double).double_value(&[]);
    assert!((share - (1.0 - p)).abs() < 0.2, "{share}");
    assert!(path.forward(&x, &context(false))?.equal(&x), "in evaluation nothing is dropped");
    Ok(())
}

/// Alpha dropout maps kept elements to a·x + b and dropped elements to a·α + b, with α = −1.7581. a
/// and b are chosen so that an input with mean 0 and variance 1 keeps this mean and variance
/// (Klambauer et al., arXiv:1706.02515).
#[rstest]
fn alpha_dropout_keeps_mean_and_variance(#[values(0.1, 0.5)] p: f64) -> Result<()> {
    let _generator = seeded(5);
    let alpha = -1.758_099_340_847_376_6_f64;
    let a = 1.0 / ((1.0 - p) * (1.0 + p * alpha * alpha)).sqrt();
    let b = -a * alpha * p;
    let x = Tensor::randn([200_000], (Kind::Double, device()));
    let layer = AlphaDropout::new(p)?;
    let y = layer.forward(&x, &context(true))?;
    let is_dropped = (&y - (a * alpha + b)).abs().lt(1e-12);
    let is_kept = (&y - (&x * a + b)).abs().lt(1e-12);
    assert!(bool::try_from(is_dropped.logical_or(&is_kept).all())?);
    let share = is_dropped.mean(Kind::Double).double_value(&[]);
    let (mean, variance) = (y.mean(Kind::Double), y.var(true));
    for (seen, expected) in
        [(share, p), (mean.double_value(&[]), 0.0), (variance.double_value(&[]), 1.0)]
    {
        assert!((seen - expected).abs() < 0.02, "found {seen}, expected {expected}");
    }
    assert!(layer.forward(&x, &context(false))?.equal(&x), "in evaluation nothing is dropped");
    Ok(())
}
