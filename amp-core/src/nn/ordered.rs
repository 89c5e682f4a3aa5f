//! Interpolation and padding operators that add up gradients in a fixed order. libtorch's CUDA
//! kernels for these layers add up by atomic operations, in an order that differs from run to run
//! even if deterministic algorithms are requested.

use tch::{Kind, Tensor};

use super::PaddingMode;
use crate::{Result, ffi};

/// Returns whether the operators of this file are used for `input`. They are used if `input` is on
/// CUDA and deterministic algorithms are requested.
pub(super) fn applies(input: &Tensor) -> Result<bool> {
    Ok(input.device().is_cuda() && ffi::numerics()?.1)
}

/// Resizes each dimension after the first two to its size in `out`, by linear interpolation. `by`
/// contains each dimension's scale factor, which maps positions in the output to positions in the
/// input. Without a scale factor, or with `align_corners`, the dimension's sizes in input and
/// output determine this mapping. As in libtorch, 16-bit values are computed in f32.
pub(super) fn linear(
    input: &Tensor,
    out: &[i64],
    by: &[Option<f64>],
    align_corners: bool,
) -> Result<Tensor> {
    let mut x = match input.kind() {
        Kind::Half | Kind::BFloat16 => input.f_to_kind(Kind::Float)?,
        _ => input.shallow_clone(),
    };
    for (at, (to, by)) in out.iter().zip(by).enumerate().rev() {
        x = linear_along(&x, at + 2, *to, *by, align_corners)?;
    }
    Ok(x.f_to_kind(input.kind())?)
}

fn linear_along(x: &Tensor, dim: usize, to: i64, by: Option<f64>, align: bool) -> Result<Tensor> {
    let from = x.size()[dim];
    let (end, numbers) = ((from - 1) as f64, Tensor::f_arange(to, (Kind::Double, x.device()))?);
    let places = match (align, by) {
        (true, _) => numbers.f_mul_scalar(end / ((to - 1) as f64).max(1.0))?,
        (false, by) => {
            let step = by.map_or(from as f64 / to as f64, f64::recip);
            numbers.f_add_scalar(0.5)?.f_mul_scalar(step)?.f_sub_scalar(0.5)?.f_clamp_min(0.0)?
        }
    };
    let first = places.f_floor()?.f_clamp_max(end)?;
    let next = first.f_add_scalar(1.0)?.f_clamp_max(end)?;
    let shape: Vec<i64> = (0..x.dim()).map(|at| if at == dim { to } else { 1 }).collect();
    let share = places.f_sub(&first)?.f_reshape(shape)?.f_to_kind(x.kind())?;
    let taken = |places: &Tensor| x.f_index_select(dim as i64, &places.f_to_kind(Kind::Int64)?);
    let (first, next) = (taken(&first)?, taken(&next)?);
    Ok(first.f_add(&next.f_sub(&first)?.f_mul(&share)?)?)
}

/// Pads each of the last dimensions with values of the input: with `before` elements at the
/// dimension's start and `after` elements at its end. Returns `None` for modes other than
/// `Replicate` and `Reflect`, and for numbers of elements that libtorch refuses.
pub(super) fn padded(
    input: &Tensor,
    mode: PaddingMode,
    before: &[i64],
    after: &[i64],
) -> Result<Option<Tensor>> {
    let size = input.size();
    let Some(first) = size.len().checked_sub(before.len()) else { return Ok(None) };
    let mut x = input.shallow_clone();
    for (at, (before, after)) in before.iter().zip(after).enumerate() {
        let (dim, last) = (first + at, size[first + at] - 1);
        let numbers = Tensor::f_arange(last + 1 + before + after, (Kind::Int64, input.device()))?;
        let places = numbers.f_sub_scalar(*before)?;
        let places = match mode {
            PaddingMode::Replicate if last >= 0 => places.f_clamp(0, last)?,
            PaddingMode::Reflect if *before.max(after) <= last => {
                // abs() mirrors positions before the start at index 0. The same operation, counted
                // from the end, then mirrors positions after the end at the last index.
                let from_end = places.f_abs()?.f_neg()?.f_add_scalar(last)?;
                from_end.f_abs()?.f_neg()?.f_add_scalar(last)?
            }
            _ => return Ok(None),
        };
        x = x.f_index_select(dim as i64, &places)?;
    }
    Ok(Some(x))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tch::Device;

    use super::*;
    use crate::nn::Sizes;

    fn sample(shape: &[i64]) -> Tensor {
        let count: i64 = shape.iter().product();
        let numbers = Tensor::arange(count, (Kind::Double, Device::Cpu));
        (numbers * 0.7).sin().reshape(shape).set_requires_grad(true)
    }

    /// Checks that `own` equals `other`, the result of libtorch's kernel, and that the gradients of
    /// `x` through `own` equal the gradients through `other`.
    fn assert_same(x: &Tensor, own: &Tensor, other: &Tensor) {
        let factor = sample(&own.size()).detach();
        let gradient = |of: &Tensor| {
            let sum = (of * &factor).sum(Kind::Double);
            Tensor::run_backward(&[sum], &[x], true, false).remove(0)
        };
        let (own_grad, other_grad) = (gradient(own), gradient(other));
        for (own, other) in [(own, other), (&own_grad, &other_grad)] {
            assert_eq!(own.size(), other.size());
            let off = (own - other).abs().max().double_value(&[]);
            assert!(off < 1e-12, "{off}");
        }
    }

    #[rstest]
    fn interpolation_equals_libtorchs(
        #[values((7, None), (4, None), (1, None), (3, None), (8, Some(1.7)), (6, Some(1.2))) ]
        (to, by): (i64, Option<f64>),
        #[values(false, true)] align: bool,
    ) -> Result<()> {
        let x = sample(&[2, 3, 5]);
        let own = linear(&x, &[to], &[by], align)?;
        assert_same(&x, &own, &x.f_upsample_linear1d([to], align, by)?);
        let x = sample(&[1, 2, 4, 5]);
        let own = linear(&x, &[3, to], &[None, by], align)?;
        assert_same(&x, &own, &x.f_upsample_bilinear2d([3, to], align, None, by)?);
        let x = sample(&[1, 1, 2, 3, 5]);
        let own = linear(&x, &[3, 2, to], &[None, None, by], align)?;
        assert_same(&x, &own, &x.f_upsample_trilinear3d([3, 2, to], align, None, None, by)?);
        Ok(())
    }

    #[rstest]
    fn padding_equals_libtorchs(
        #[values(PaddingMode::Reflect, PaddingMode::Replicate)] mode: PaddingMode,
        #[values([0, 2], [3, 1], [2, 0])] before: [i64; 2],
        #[values([1, 0], [0, 3])] after: [i64; 2],
    ) -> Result<()> {
        let x = sample(&[2, 3, 4, 5]);
        let own = padded(&x, mode, &before, &after)?.expect("it pads");
        assert_same(&x, &own, &mode.pad(&x, Sizes(before), Sizes(after))?);
        Ok(())
    }

    /// Checks that `padded` returns `None` for a padding that libtorch refuses, so that libtorch
    /// reports the error.
    #[test]
    fn sides_that_libtorch_refuses_are_left_to_it() -> Result<()> {
        let x = sample(&[1, 1, 4]);
        assert!(padded(&x, PaddingMode::Reflect, &[4], &[0])?.is_none());
        assert!(padded(&x, PaddingMode::Zeros, &[1], &[1])?.is_none());
        assert!(padded(&x.get(0).get(0).get(0), PaddingMode::Reflect, &[1], &[1])?.is_none());
        Ok(())
    }
}
