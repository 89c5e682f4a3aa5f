//! Selects evenly spaced elements of a tensor, for checks that cannot read the whole tensor.

use tch::Tensor;

use crate::Result;

/// Returns the distance between neighbouring selected elements (1 selects all), so that about
/// `most` elements are selected. The distance is odd: a multiple of an even row length would select
/// only one column of a matrix.
pub(super) fn spacing(tensor: &Tensor, most: i64) -> i64 {
    (tensor.numel() as i64 / most) | 1
}

/// Returns every [`spacing`]-th element, detached. The result is a view if the tensor is
/// contiguous.
pub(super) fn sample(tensor: &Tensor, most: i64) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_reshape([-1])?.f_slice(0, None, None, spacing(tensor, most))?)
}
