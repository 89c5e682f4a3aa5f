//! Tests of the memory layout in which a convolution computes.

use tch::{Device, Kind};

use super::*;
use crate::{
    nn::{BatchNorm, BatchNormConfig, Dropout, Gelu, MaxPool2d, MaxPool2dConfig, Relu, place},
    precision::{AutocastGuard, Policy, Precision},
    random,
};

const HALF: [Precision; 4] =
    [Precision::F16Mixed, Precision::Bf16Mixed, Precision::F16True, Precision::Bf16True];

/// Returns whether the channels are the innermost dimension in memory.
fn is_channels_last(tensor: &Tensor) -> bool {
    let size = tensor.size();
    let [channels, height, width] = [size[1], size[2], size[3]];
    tensor.stride() == [channels * height * width, 1, channels * width, channels]
}

fn randn(shape: &[i64], kind: Kind) -> Result<Tensor> {
    Ok(Tensor::f_randn(shape, (kind, Device::Cpu))?.f_set_requires_grad(true)?)
}

fn region(precision: Precision) -> Result<Option<AutocastGuard>> {
    Policy::new(precision, Device::Cpu).autocast()
}

/// Returns the largest difference between `seen` and `exact`, as a fraction of the largest absolute
/// value of `exact`.
fn off(seen: &Tensor, exact: &Tensor) -> Result<f64> {
    let distance = seen.f_to_kind(Kind::Double)?.f_sub(exact)?.f_abs()?.f_max()?;
    Ok(distance.f_div(&exact.f_abs()?.f_max()?)?.f_double_value(&[])?)
}

/// Returns a random input with `channels` channels, and the weight and the bias of a convolution.
fn leaves(precision: Precision, channels: i64, kernel: i64) -> Result<[Tensor; 3]> {
    let kind = precision.storage();
    let shapes: [&[i64]; 3] = [&[4, channels, 9, 9], &[16, channels, kernel, kernel], &[16]];
    let [input, weight, bias] = shapes.map(|shape| randn(shape, kind));
    Ok([input?, weight?, bias?])
}

/// Returns the convolution's output, and the gradients of input, weight and bias if the gradient of
/// the output is `incoming`.
fn both_ways(
    [input, weight, bias]: &[Tensor; 3],
    shape: [i64; 2],
    incoming: &Tensor,
    channels_last: bool,
) -> Result<(Tensor, Vec<Tensor>)> {
    let output = ffi::conv2d(input, weight, Some(bias), shape, channels_last)?;
    let sum = output.f_mul(incoming)?.f_sum(output.kind())?;
    let gradients = Tensor::f_run_backward(&[sum], &[input, weight, bias], false, false)?;
    Ok((output, gradients))
}

/// Checks that a convolution in f16 or bf16 gives the output and gradients of a convolution in f64,
/// up to rounding. Each gradient must have the dtype of its tensor, and the weight's gradient must
/// have the weight's layout. Two cases have a single channel, because a tensor with one channel is
/// contiguous and channels_last at once.
#[test]
fn a_layout_changes_no_value() -> Result<()> {
    let _section = random::seeded(0)?;
    let shapes = [(8, 3, [1, 1]), (8, 3, [2, 0]), (8, 1, [1, 0]), (1, 3, [1, 1]), (1, 1, [1, 0])];
    for precision in HALF {
        for (channels, kernel, shape) in shapes {
            let case = format!("{precision}, {channels} channels, {kernel}, {shape:?}");
            let own = leaves(precision, channels, kernel)?;
            let side = (9 + 2 * shape[1] - kernel) / shape[0] + 1;
            let incoming = Tensor::f_randn([4, 16, side, side], (Kind::Float, Device::Cpu))?
                .f_to_kind(precision.compute())?;
            let (output, gradients) = {
                let _region = region(precision)?;
                both_ways(&own, shape, &incoming, true)?
            };
            let wide = |tensor: &Tensor| -> Result<Tensor> {
                let seen = tensor.f_detach()?.f_to_kind(precision.compute())?;
                Ok(seen.f_to_kind(Kind::Double)?.f_set_requires_grad(true)?)
            };
            let exact = [wide(&own[0])?, wide(&own[1])?, wide(&own[2])?];
            let incoming = incoming.f_to_kind(Kind::Double)?;
            let (exact, expected) = both_ways(&exact, shape, &incoming, false)?;
            let rounding = if output.kind() == Kind::Half { 2e-3 } else { 1.6e-2 };
            assert_eq!(output.kind(), precision.compute(), "{case}");
            assert!(is_channels_last(&output), "{case}: {:?}", output.stride());
            assert!(off(&output, &exact)? < rounding, "{case}");
            for ((own, seen), exact) in own.iter().zip(&gradients).zip(&expected) {
                assert_eq!(own.kind(), seen.kind(), "{case}");
                assert!(off(seen, exact)? < rounding, "{case}");
            }
            assert!(own[1].is_contiguous() && gradients[1].is_contiguous(), "{case}");
        }
    }
    Ok(())
}

/// Checks that a convolution in f32 or f64, and a convolution of an input without a batch
/// dimension, return the same bits and the same memory layout as libtorch's convolution.
#[test]
fn other_convolutions_are_left_alone() -> Result<()> {
    let _section = random::seeded(0)?;
    let same = |own: &[Tensor; 3]| -> Result<()> {
        let [input, weight, bias] = own;
        let plain = input.f_conv2d(weight, Some(bias), [1, 1], [1, 1], [1, 1], 1)?;
        let asked = ffi::conv2d(input, weight, Some(bias), [1, 1], true)?;
        assert_eq!((asked.stride(), asked.kind()), (plain.stride(), plain.kind()));
        assert!(asked.f_equal(&plain)? && asked.is_contiguous());
        Ok(())
    };
    for precision in [Precision::F32True, Precision::F64True] {
        same(&leaves(precision, 8, 3)?)?;
    }
    let [input, weight, bias] = leaves(Precision::Bf16Mixed, 8, 3)?;
    let _region = region(Precision::Bf16Mixed)?;
    same(&[input.f_select(0, 0)?, weight, bias])
}

/// Checks that an autocast region converts the weight to channels_last only once: a write to the
/// weight has no effect before the next region. Also checks that the gradients of two forward
/// passes in one region add up, even if a pass without gradients ran before them.
#[test]
fn a_weight_is_brought_to_the_layout_once_a_region() -> Result<()> {
    let _section = random::seeded(0)?;
    let [input, weight, _] = leaves(Precision::Bf16Mixed, 8, 3)?;
    let pass = || ffi::conv2d(&input, &weight, None, [1, 1], true);
    let first = {
        let _region = region(Precision::Bf16Mixed)?;
        let unseen = tch::no_grad(pass)?;
        let first = pass()?;
        let _ = tch::no_grad(|| weight.shallow_clone().f_zero_())?;
        let second = pass()?;
        assert!(first.f_equal(&unseen)? && first.f_equal(&second)?);
        let sum = first.f_add(&second)?.f_sum(Kind::Float)?;
        let both = Tensor::f_run_backward(&[sum], &[&weight], true, false)?;
        let sum = first.f_sum(Kind::Float)?;
        let one = Tensor::f_run_backward(&[sum], &[&weight], true, false)?;
        assert!(
            both[0].f_equal(&one[0].f_mul_scalar(2.0)?)?
                && one[0].f_any()?.f_int64_value(&[])? == 1
        );
        first
    };
    let _region = region(Precision::Bf16Mixed)?;
    let next = pass()?;
    assert!(first.f_any()?.f_int64_value(&[])? == 1 && next.f_any()?.f_int64_value(&[])? == 0);
    Ok(())
}

/// Checks that the second derivative of Σ conv(x, w)³ with respect to w is the same in bf16 as in
/// f64, up to rounding.
#[test]
fn a_weight_has_second_derivatives() -> Result<()> {
    let _section = random::seeded(0)?;
    let own = leaves(Precision::Bf16True, 8, 3)?;
    let second = |[input, weight, bias]: &[Tensor; 3], channels_last| -> Result<Tensor> {
        let output = ffi::conv2d(input, weight, Some(bias), [1, 1], channels_last)?;
        let cubes = output.f_pow_tensor_scalar(3)?.f_sum(output.kind())?;
        let first = Tensor::f_run_backward(&[cubes], &[weight], true, true)?;
        let sum = first[0].f_sum(first[0].kind())?;
        Ok(Tensor::f_run_backward(&[sum], &[weight], false, false)?.remove(0))
    };
    let wide =
        own.each_ref().map(|tensor| tensor.detach().to_kind(Kind::Double).set_requires_grad(true));
    let (seen, exact) = (second(&own, true)?, second(&wide, false)?);
    assert!(off(&seen, &exact)? < 5e-2, "{}", off(&seen, &exact)?);
    Ok(())
}

/// Checks that the layers after a convolution return outputs in the layout channels_last.
#[test]
fn layers_keep_the_layout() -> Result<()> {
    let _section = random::seeded(0)?;
    let policy = Policy::new(Precision::Bf16Mixed, Device::Cpu);
    let cx = Context::new(policy, true);
    let layers: [Box<dyn Module>; 5] = [
        Box::new(BatchNorm::new(BatchNormConfig::new(16))?),
        Box::new(Relu),
        Box::new(Dropout::new(0.5)?),
        Box::new(Gelu),
        Box::new(MaxPool2d::new(MaxPool2dConfig::new(2))?),
    ];
    let [input, weight, bias] = leaves(policy.precision, 8, 3)?;
    let _region = policy.autocast()?;
    let mut x = ffi::conv2d(&input, &weight, Some(&bias), [1, 1], true)?;
    for layer in &layers {
        place(layer, policy, &Default::default())?;
        x = layer.forward(&x, &cx)?;
        assert!(is_channels_last(&x), "{:?} of {:?}", x.stride(), x.size());
    }
    Ok(())
}
