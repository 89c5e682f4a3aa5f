//! Evenly spaced elements of a tensor, for checks that cannot read the whole tensor.

use tch::Tensor;

use crate::Result;

/// Returns the spacing with which about `most` elements are read. It is odd, so that not all
/// elements are in one column.
pub(super) fn spacing(tensor: &Tensor, most: i64) -> i64 {
    (tensor.numel() as i64 / most) | 1
}

/// Returns elements at distances of [`spacing`], detached. The result is a view if the tensor is
/// contiguous.
pub(super) fn sample(tensor: &Tensor, most: i64) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_reshape([-1])?.f_slice(0, None, None, spacing(tensor, most))?)
}
