//! Splits the query-key-value projection into heads, and masks the output of attention
//! (`csrc/attention.cpp`, `csrc/heads.cpp`, `csrc/masked_rows.cpp`).

use std::ffi::c_int;

use tch::Tensor;
use torch_sys::C_tensor;

use super::{Handle, layers::optional_tensor, take_error};
use crate::Result;

unsafe extern "C" {
    fn amp_attention_gradient_layout(attended: Handle) -> c_int;
    fn amp_split_heads(product: Handle, heads: i64, out: *mut *mut C_tensor) -> c_int;
    fn amp_masked_rows(attended: Handle, masked: Handle, out: *mut *mut C_tensor) -> c_int;
}

/// Splits `product`, the output `[batch, length, 3·heads·width]` of the query-key-value projection,
/// into queries, keys and values, each `[batch, heads, length, width]`.
pub(crate) fn split_heads(product: &Tensor, heads: i64) -> Result<[Tensor; 3]> {
    let mut out = [std::ptr::null_mut(); 3];
    checked!(amp_split_heads(product.as_ptr(), heads, out.as_mut_ptr()))?;
    // SAFETY: on success these are new tensors without another owner.
    Ok(out.map(|one| unsafe { Tensor::from_ptr(one) }))
}

/// Gives the gradient of `attended`, the output of attention, the same memory layout in every
/// backward pass, if cuDNN computed `attended`. If the layout differed between two backward passes,
/// libtorch 2.11 would return wrong gradients.
pub(crate) fn attention_gradient_layout(attended: &Tensor) -> Result<()> {
    checked!(amp_attention_gradient_layout(attended.as_ptr()))
}

/// Writes zeros in place to `attended`, the output of attention with the shape `[N, heads, L,
/// width]`, where `masked` is true. The shape of `masked` broadcasts to `[N, heads, L, 1]`. After
/// the call, read only the returned tensor, and no other handle of `attended`. Returns `None` if
/// the kernel does not support these arguments.
pub(crate) fn masked_rows(attended: &Tensor, masked: &Tensor) -> Result<Option<Tensor>> {
    let (attended, masked) = (attended.as_ptr(), masked.as_ptr());
    optional_tensor(|out| checked!(amp_masked_rows(attended, masked, out)))
}
