//! Reads several numbers from a device at once. Each read waits until the device has finished the
//! work that was given to it before, and longer if other processes use the device too, so a single
//! read is faster than one read for each number.

use amp_core::{
    Result,
    tch::{Kind, Tensor, no_grad},
};

/// Returns the values of tensors that have one element each, in f64.
///
/// # Errors
/// When a tensor does not have exactly one element.
pub(crate) fn read(tensors: &[Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else { return Ok(Vec::new()) };
    let device = first.device();
    no_grad(|| {
        let alike = tensors.iter().map(|tensor| {
            if tensor.kind() == Kind::Double && tensor.dim() == 0 && tensor.device() == device {
                return Ok(tensor.shallow_clone());
            }
            Ok(tensor
                .f_detach()?
                .f_to_device(device)?
                .f_to_kind(Kind::Double)?
                .f_reshape([0_i64; 0])?)
        });
        let together = Tensor::f_stack(&alike.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(Vec::try_from(together)?)
    })
}

/// Returns the values of `N` tensors that have one element each, in f64.
///
/// # Errors
/// When a tensor does not have exactly one element.
pub(crate) fn read_all<const N: usize>(tensors: [Tensor; N]) -> Result<[f64; N]> {
    let mut values = read(&tensors)?.into_iter();
    Ok([(); N].map(|()| values.next().unwrap_or(f64::NAN)))
}

/// Computes Σx² in f64, on the tensor's device.
///
/// # Errors
/// When there is not enough memory.
pub(crate) fn square(tensor: &Tensor) -> Result<Tensor> {
    no_grad(|| match tensor.kind() {
        Kind::Double => Ok(tensor.f_square()?.f_sum(Kind::Double)?),
        _ => sum_of_squares(tensor.f_to_kind(Kind::Double)?),
    })
}

/// Computes Σx² of an f64 tensor. Squares the elements in place, so that a large tensor needs no
/// further memory.
fn sum_of_squares(mut own: Tensor) -> Result<Tensor> {
    Ok(own.f_square_()?.f_sum(Kind::Double)?)
}

/// Computes Σ(a − b)² in f64, on the device of `a`.
///
/// # Errors
/// When the shapes of `a` and `b` differ.
pub(crate) fn square_of_difference(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    no_grad(|| {
        let b = b.f_to_device(a.device())?.f_to_kind(Kind::Double)?;
        sum_of_squares(a.f_to_kind(Kind::Double)?.f_sub(&b)?)
    })
}

/// Returns whether every element of every tensor is finite.
///
/// # Errors
/// When libtorch fails.
pub(crate) fn all_finite<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<bool> {
    let each = tensors.into_iter().map(|tensor| Ok(tensor.f_isfinite()?.f_all()?));
    let each = no_grad(|| each.collect::<Result<Vec<Tensor>>>())?;
    Ok(read(&each)?.into_iter().all(|finite| finite != 0.0))
}

/// Returns whether the two tensors of each pair have equal elements. A NaN is not equal to any
/// value, not even to another NaN.
///
/// # Errors
/// When the shapes of a pair differ.
pub(crate) fn all_equal<'t>(
    pairs: impl IntoIterator<Item = (&'t Tensor, &'t Tensor)>,
) -> Result<bool> {
    let each = pairs.into_iter().map(|(a, b)| {
        Ok(a.f_detach()?.f_ne_tensor(&b.f_detach()?.f_to_device(a.device())?)?.f_any()?)
    });
    let each = no_grad(|| each.collect::<Result<Vec<Tensor>>>())?;
    Ok(read(&each)?.into_iter().all(|differs| differs == 0.0))
}

#[cfg(test)]
mod tests {
    use amp_core::tch::Device;

    use super::*;

    #[test]
    fn numbers_are_read_in_their_order() -> Result<()> {
        let of = |values: &[f64]| Tensor::from_slice(values);
        assert_eq!(read(&[of(&[3.0]), Tensor::from(2_i64), Tensor::from(true)])?, [3.0, 2.0, 1.0]);
        assert!(read(&[])?.is_empty() && read(&[of(&[1.0, 2.0])]).is_err());
        let (a, b) = (of(&[3.0, 4.0]), of(&[3.0, 6.0]));
        let all = read_all([square(&a)?, square_of_difference(&a, &b)?])?;
        assert_eq!(all, [25.0, 4.0]);
        let half = Tensor::full([4], 300.0, (Kind::Half, Device::Cpu));
        assert_eq!(read_all([square(&half)?])?, [360_000.0]);
        Ok(())
    }

    #[test]
    fn one_value_among_all_is_seen() -> Result<()> {
        let of = |values: &[f32]| Tensor::from_slice(values);
        let (fine, inf, nan) = (of(&[1.0, 0.0]), of(&[f32::INFINITY]), of(&[2.0, f32::NAN]));
        assert!(all_finite([&fine, &fine])? && all_finite([])?);
        assert!(!all_finite([&fine, &inf])? && !all_finite([&nan, &fine])?);
        assert!(all_equal([(&fine, &of(&[1.0, 0.0])), (&inf, &inf)])? && all_equal([])?);
        assert!(!all_equal([(&inf, &inf), (&fine, &of(&[1.0, 1e-30]))])?);
        assert!(!all_equal([(&nan, &nan)])?);
        Ok(())
    }
}
