//! If deterministic algorithms are requested, the gradients on CUDA have the same bits each time.
//! This includes layers for which libtorch's kernels add in no fixed order.

use amp_core::{
    Module, Result,
    hardware::set_numerics,
    nn::{
        AdaptiveAvgPool2d, Context, Interpolation, ReflectionPad1d, ReflectionPad2d,
        ReplicationPad3d, Upsample, UpsampleConfig,
    },
    precision::{Policy, Precision},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{bits::relative, device, needs_cuda, seeded};

/// Requests deterministic algorithms until it is dropped.
struct Deterministic;

impl Deterministic {
    fn new() -> Result<Self> {
        set_numerics(false, true).map(|()| Self)
    }
}

impl Drop for Deterministic {
    fn drop(&mut self) {
        set_numerics(false, false).expect("numerics");
    }
}

fn linear(scale_factor: f64) -> Result<Upsample> {
    let (mode, scale_factor) = (Interpolation::Linear, scale_factor.into());
    Upsample::new(UpsampleConfig { scale_factor, mode, ..UpsampleConfig::new() })
}

fn boxed<M: Module + 'static>(layer: Result<M>) -> Result<Box<dyn Module>> {
    Ok(Box::new(layer?))
}

#[rstest]
#[case::linear(boxed(linear(2.3)), &[4, 8, 500])]
#[case::bilinear(boxed(linear(2.3)), &[4, 8, 40, 50])]
#[case::trilinear(boxed(linear(1.7)), &[2, 4, 9, 20, 20])]
#[case::reflected(boxed(ReflectionPad1d::new(300)), &[4, 8, 500])]
#[case::reflected_images(boxed(ReflectionPad2d::new(20)), &[4, 8, 40, 50])]
#[case::replicated(boxed(ReplicationPad3d::new(6)), &[2, 4, 9, 20, 20])]
#[case::adaptive(boxed(AdaptiveAvgPool2d::new([8, 10])), &[4, 8, 40, 50])]
#[ignore]
fn gradients_repeat_their_bits(
    #[case] layer: Result<Box<dyn Module>>,
    #[case] shape: &[i64],
    #[values(Kind::Float, Kind::Half)] kind: Kind,
) -> Result<()> {
    needs_cuda();
    let (layer, _generator) = (layer?, seeded(3));
    let x = Tensor::randn(shape, (Kind::Float, device())).to_kind(kind);
    let run = |x: &Tensor| -> Result<[Tensor; 2]> {
        let cx = Context::new(Policy::new(Precision::F32True, x.device()), true);
        let x = x.detach().set_requires_grad(true);
        let y = layer.forward(&x, &cx)?;
        let weights = Tensor::f_arange(y.numel() as i64, (Kind::Double, x.device()))?;
        let weights = weights.sin().f_reshape(y.size())?.f_to_kind(y.kind())?;
        y.f_mul(&weights)?.f_sum(Kind::Float)?.f_backward()?;
        Ok([y.detach(), x.grad()])
    };
    let exact = run(&x.to_kind(Kind::Double).to_device(Device::Cpu))?;
    let _numerics = Deterministic::new()?;
    let first = run(&x)?;
    for (seen, exact) in first.iter().zip(&exact) {
        let (error, bound) = (relative(seen, exact), if kind == Kind::Half { 5e-3 } else { 1e-5 });
        assert!(error < bound, "{error}");
    }
    for _ in 0..20 {
        for (again, first) in run(&x)?.iter().zip(&first) {
            assert!(again.equal(first));
        }
    }
    Ok(())
}
