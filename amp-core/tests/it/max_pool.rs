//! Tests of max pooling of f16 and bf16 images in channels_last on CUDA (`AMP_DEVICE=cuda`). The
//! expected results are libtorch's on the CPU. The images contain many equal values, a NaN and an
//! infinity.

use amp_core::{
    Module, Result,
    nn::{Context, MaxPool2d, MaxPool2dConfig},
    precision::{Policy, Precision},
    tch::{Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    layers::{draw, rounding},
    needs_cuda, seeded,
};

fn channels_last(tensor: &Tensor) -> Tensor {
    tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// The outputs equal libtorch's exactly. The gradients equal libtorch's up to rounding, so they go
/// to the same elements of the input.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn outputs_and_gradients_equal_libtorchs(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values([2, 8, 11, 14], [3, 72, 6, 5], [4, 12, 8, 8])] shape: [i64; 4],
    #[values(
        ([3, 3], [2, 2], [1, 1], [1, 1]),
        ([2, 2], [2, 2], [0, 0], [1, 1]),
        ([3, 2], [1, 3], [1, 0], [2, 1]),
        ([5, 5], [2, 1], [2, 2], [1, 1])
    )]
    (size, stride, padding, dilation): ([i64; 2], [i64; 2], [i64; 2], [i64; 2]),
    #[values(false, true)] ceil_mode: bool,
) -> Result<()> {
    needs_cuda();
    let _generator = seeded(2);
    // Many values are equal, as after a ReLU.
    let input = draw(&shape, kind, 1.0, 0.0).relu();
    let flat = input.view([-1]);
    let _ = flat.get(5).fill_(f64::NAN);
    let _ = flat.get(40).fill_(f64::INFINITY);
    let pool = MaxPool2d::new(MaxPool2dConfig {
        stride: stride.into(),
        padding: padding.into(),
        dilation: dilation.into(),
        ceil_mode,
        ..MaxPool2dConfig::new(size)
    })?;
    let x = channels_last(&input.to(device())).set_requires_grad(true);
    let cx = Context::new(Policy::new(Precision::F32True, device()), true);
    let output = pool.forward(&x, &cx)?;

    let exact_in = wide(&input).set_requires_grad(true);
    let exact = exact_in.max_pool2d(size, stride, padding, dilation, ceil_mode);
    let incoming = draw(&exact.size(), kind, 1.0, 0.0);
    output.backward_with(&channels_last(&incoming.to(device())))?;
    exact.backward_with(&wide(&incoming))?;
    assert_eq!((output.kind(), output.size()), (kind, exact.size()));
    let numbers = |tensor: &Tensor| wide(tensor).nan_to_num(-7.0, 1e9, -1e9);
    assert!(numbers(&output).equal(&numbers(&exact.detach())));
    let off = relative(&x.grad(), &exact_in.grad());
    assert!(off < 2.0 * rounding(kind), "{off}");
    Ok(())
}

/// Runs the backward pass with `incoming` as the gradient of the output.
trait BackwardWith {
    fn backward_with(&self, incoming: &Tensor) -> Result<()>;
}

impl BackwardWith for Tensor {
    fn backward_with(&self, incoming: &Tensor) -> Result<()> {
        // If the output contains NaN or infinity, this loss is not finite. Its gradient with
        // respect to the output is nevertheless `incoming`.
        Ok((self * incoming).f_sum(Kind::Double)?.f_backward()?)
    }
}

/// If the images are not in channels_last, libtorch's kernel computes the pooling on every device.
#[test]
fn without_channels_last_libtorch_computes_it() -> Result<()> {
    let _generator = seeded(2);
    let cx = Context::new(Policy::new(Precision::F32True, device()), true);
    let pool = MaxPool2d::new(MaxPool2dConfig::new(2))?;
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = draw(&[2, 3, 6, 6], kind, 1.0, 0.0).to(device());
        let expected = x.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false);
        assert!(pool.forward(&x, &cx)?.equal(&expected));
    }
    Ok(())
}
