//! What stands around attention (`csrc/heads.cpp`, `csrc/masked_rows.cpp`).

use std::ffi::c_int;

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, layers::perhaps_made, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_split_heads(product: Handle, heads: i64, out: *mut *mut C_tensor) -> c_int;
    fn amp_masked_rows(attended: Handle, masked: Handle, out: *mut *mut C_tensor) -> c_int;
}

/// Queries, keys and values by head, `[batch, heads, length, width]` each, of `[batch, length, 3·heads·width]`.
pub(crate) fn split_heads(product: &Tensor, heads: i64) -> Result<[Tensor; 3]> {
    let mut out = [std::ptr::null_mut(); 3];
    checked!(amp_split_heads(product.as_ptr(), heads, out.as_mut_ptr()))?;
    // SAFETY: on success these are new tensors that nobody else owns.
    Ok(out.map(|one| unsafe { Tensor::from_ptr(one) }))
}

/// What attention gave, `[N, heads, L, width]`, with zeros where `masked`, `[N, heads, L, 1]` or 1 in place of a size,
/// is true. It is changed where it is, so that no other handle of it may be read. `None` where the kernel cannot take
/// these.
pub(crate) fn masked_rows(attended: &Tensor, masked: &Tensor) -> Result<Option<Tensor>> {
    let (attended, masked) = (attended.as_ptr(), masked.as_ptr());
    perhaps_made(|out| checked!(amp_masked_rows(attended, masked, out)))
}
