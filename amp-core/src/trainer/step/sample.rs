//! Some elements of a tensor, evenly far apart, where looking at all of them would cost too much.

use tch::Tensor;

use crate::Result;

/// How far apart they are where about `most` are taken. Odd, so that they are not all of one column.
pub(super) fn spacing(tensor: &Tensor, most: i64) -> i64 {
    (tensor.numel() as i64 / most) | 1
}

/// Elements that are [`spacing`] apart: a view where the tensor is contiguous, without a history.
pub(super) fn sample(tensor: &Tensor, most: i64) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_reshape([-1])?.f_slice(0, None, None, spacing(tensor, most))?)
}
