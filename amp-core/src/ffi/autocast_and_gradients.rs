//! Autocast state, backward passes and kernels on lists of tensors (`csrc/autocast_and_gradients.cpp`,
//! `csrc/gradient.cpp`, `csrc/copy.cpp`).

use std::{
    ffi::{c_double, c_int, c_void},
    ops::Deref,
};

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use super::{Handle, handle, handles, take_error};
use crate::{Error, Result, parameter::Parameter};

unsafe extern "C" {
    fn amp_autocast_get(cuda: c_int, on: *mut c_int, dtype: *mut c_int, cache: *mut c_int)
    -> c_int;
    fn amp_autocast_set(cuda: c_int, on: c_int, dtype: c_int, cache: c_int) -> c_int;
    fn amp_autocast_enter(depth: *mut c_int) -> c_int;
    fn amp_autocast_leave(depth: *mut c_int) -> c_int;
    fn amp_unscale(grads: *const Handle, count: usize, found_inf: Handle, inv: Handle) -> c_int;
    fn amp_all_finite(tensors: *const Handle, count: usize, all: *mut c_int) -> c_int;
    fn amp_foreach_norm(
        tensors: *const Handle,
        count: usize,
        ord: c_double,
        as_f32: c_int,
        norms: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_clip_factor(
        grads: *const Handle,
        count: usize,
        scale: Handle,
        max_norm: c_double,
        found_inf: Handle,
        wide: c_int,
        norm: *mut *mut C_tensor,
        factor: *mut *mut C_tensor,
    ) -> c_int;
    fn amp_foreach_mul(tensors: *const Handle, count: usize, factor: Handle) -> c_int;
    fn amp_copy_each(to: *const Handle, from: *const Handle, count: usize) -> c_int;
    fn amp_foreach_add_each(to: *const Handle, from: *const Handle, count: usize) -> c_int;
    fn amp_backward(loss: Handle, seed: Handle) -> c_int;
    fn amp_foreach_add(tensors: *const Handle, count: usize, value: c_double) -> c_int;
    fn amp_foreach_clamp(tensors: *const Handle, count: usize, low: f64, high: f64) -> c_int;
    fn amp_grads(
        tensors: *const Handle,
        count: usize,
        grads: *mut *mut C_tensor,
        list: *mut *mut c_void,
    ) -> c_int;
    fn amp_grads_drop(list: *mut c_void);
    fn amp_allow_any_grad_dtype(tensors: *const Handle, count: usize, any: c_int) -> c_int;
    fn amp_clear_grads(tensors: *const Handle, count: usize) -> c_int;
    fn amp_identity(tensor: Handle) -> *const c_void;
}

/// The autocast state of one device type on this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AutocastState {
    pub(crate) enabled: bool,
    pub(crate) dtype: c_int,
    pub(crate) cache: bool,
}

/// Returns the number by which libtorch identifies a dtype that autocast supports
/// (c10/core/ScalarType.h).
pub(crate) fn scalar_type(kind: Kind) -> Result<c_int> {
    match kind {
        Kind::Half => Ok(5),
        Kind::Float => Ok(6),
        Kind::Double => Ok(7),
        Kind::BFloat16 => Ok(15),
        other => Err(Error::config(format!("{other:?} is not a floating dtype"))),
    }
}

pub(crate) fn autocast_state(cuda: bool) -> Result<AutocastState> {
    let (mut enabled, mut dtype, mut cache) = (0, 0, 0);
    checked!(amp_autocast_get(c_int::from(cuda), &mut enabled, &mut dtype, &mut cache))?;
    Ok(AutocastState { enabled: enabled != 0, dtype, cache: cache != 0 })
}

pub(crate) fn set_autocast(cuda: bool, state: AutocastState) -> Result<()> {
    checked!(amp_autocast_set(
        c_int::from(cuda),
        c_int::from(state.enabled),
        state.dtype,
        c_int::from(state.cache),
    ))
}

pub(crate) fn autocast_enter() -> Result<i32> {
    let mut depth = 0;
    checked!(amp_autocast_enter(&mut depth))?;
    Ok(depth)
}

pub(crate) fn autocast_leave() -> Result<i32> {
    let mut depth = 0;
    checked!(amp_autocast_leave(&mut depth))?;
    Ok(depth)
}

/// Multiplies `grads` by `inv_scale` in place. Sets `found_inf` to 1 if an element is not finite.
pub(crate) fn unscale(grads: &[Tensor], found_inf: &Tensor, inv_scale: &Tensor) -> Result<()> {
    let grads = handles(grads);
    checked!(amp_unscale(grads.as_ptr(), grads.len(), found_inf.as_ptr(), inv_scale.as_ptr()))
}

/// Returns whether every element of the CPU tensors is finite.
pub(crate) fn all_finite(tensors: &[Tensor]) -> Result<bool> {
    let tensors = handles(tensors);
    let mut all = 0;
    checked!(amp_all_finite(tensors.as_ptr(), tensors.len(), &mut all))?;
    Ok(all != 0)
}

/// Returns the norm of order `ord` of each tensor, on the device of the tensor. If `as_f32` is
/// true, the norm of f16 and bf16 tensors is accumulated in f32.
pub(crate) fn foreach_norm(tensors: &[Tensor], ord: f64, as_f32: bool) -> Result<Vec<Tensor>> {
    let inputs = handles(tensors);
    let mut norms = vec![std::ptr::null_mut(); inputs.len()];
    checked!(amp_foreach_norm(
        inputs.as_ptr(),
        inputs.len(),
        ord,
        c_int::from(as_f32),
        norms.as_mut_ptr(),
    ))?;
    // SAFETY: on success each entry is a new tensor without another owner.
    Ok(norms.into_iter().map(|norm| unsafe { Tensor::from_ptr(norm) }).collect())
}

/// Returns the norm of all gradients together, and the factor that unscales and clips them: min(1,
/// `max_norm` / (norm / `scale` + 1e-6)) / `scale`. The gradients must be on one CUDA device. Norm
/// and factor are scalars on this device, in f64 if a gradient is f64 and otherwise in f32.
/// `scale` is the loss scale; `None` means 1. `found_inf` becomes NaN if the norm is not finite.
pub(crate) fn clip_factor(
    grads: &[Tensor],
    scale: Option<&Tensor>,
    max_norm: f64,
    found_inf: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let wide = grads.iter().any(|grad| grad.kind() == Kind::Double);
    let grads = handles(grads);
    let (mut norm, mut factor) = (std::ptr::null_mut(), std::ptr::null_mut());
    checked!(amp_clip_factor(
        grads.as_ptr(),
        grads.len(),
        handle(scale),
        max_norm,
        handle(found_inf),
        c_int::from(wide),
        &mut norm,
        &mut factor,
    ))?;
    // SAFETY: on success both are new tensors without another owner.
    Ok(unsafe { (Tensor::from_ptr(norm), Tensor::from_ptr(factor)) })
}

pub(crate) fn foreach_mul(tensors: &[Tensor], factor: &Tensor) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_foreach_mul(tensors.as_ptr(), tensors.len(), factor.as_ptr()))
}

/// Copies the second tensor of each pair into the first. On a CUDA device one kernel copies all
/// pairs.
pub(crate) fn copy_each(pairs: &[[&Tensor; 2]]) -> Result<()> {
    let [to, from] = [0, 1].map(|at| handles(pairs.iter().map(|pair| pair[at])));
    checked!(amp_copy_each(to.as_ptr(), from.as_ptr(), pairs.len()))
}

/// Adds each tensor of `from` to the tensor at the same index of `to`. The additions are not part
/// of an autograd graph.
pub(crate) fn foreach_add_each(to: &[&Tensor], from: &[&Tensor]) -> Result<()> {
    assert_eq!(to.len(), from.len(), "`to` and `from` need the same length");
    if to.is_empty() {
        return Ok(());
    }
    let (to, from) = (handles(to.iter().copied()), handles(from.iter().copied()));
    checked!(amp_foreach_add_each(to.as_ptr(), from.as_ptr(), to.len()))
}

/// Runs the backward pass of a scalar loss, and adds the new gradients to the gradients that the
/// parameters already have. The backward pass begins with `seed` as the gradient of the loss, so
/// the new gradients are multiplied by `seed`. `seed` is an f32 scalar on the loss's device; `None`
/// means 1.
pub(crate) fn backward(loss: &Tensor, seed: Option<&Tensor>) -> Result<()> {
    checked!(amp_backward(loss.as_ptr(), handle(seed)))
}

pub(crate) fn foreach_add(tensors: &[&Tensor], value: f64) -> Result<()> {
    let tensors = handles(tensors.iter().copied());
    checked!(amp_foreach_add(tensors.as_ptr(), tensors.len(), value))
}

pub(crate) fn foreach_clamp(tensors: &[Tensor], low: f64, high: f64) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_foreach_clamp(tensors.as_ptr(), tensors.len(), low, high))
}

/// The gradients of some parameters. C++ stores all gradients in one list, so that it need not
/// allocate a handle for each gradient.
#[derive(Debug)]
pub(crate) struct Grads {
    list: *mut c_void,
    /// Handles of the gradients in `list`. The list frees the gradients.
    tensors: Vec<Tensor>,
    /// For each gradient, the index of its parameter in the list that was passed to [`Grads::of`].
    places: Vec<usize>,
}

impl Grads {
    /// Returns the gradients of those parameters that have a gradient.
    pub(crate) fn of(parameters: &[Parameter]) -> Result<Self> {
        let owners = handles(parameters.iter().map(|parameter| &parameter.tensor));
        let mut grads = vec![std::ptr::null_mut(); owners.len()];
        let mut list = std::ptr::null_mut();
        checked!(amp_grads(owners.as_ptr(), owners.len(), grads.as_mut_ptr(), &mut list))?;
        let (tensors, places) = (Vec::with_capacity(grads.len()), Vec::with_capacity(grads.len()));
        let mut found = Self { list, tensors, places };
        for (place, grad) in grads.into_iter().enumerate().filter(|(_, grad)| !grad.is_null()) {
            // SAFETY: the list owns the tensor and frees it. `Grads::drop` does not free this
            // handle.
            found.tensors.push(unsafe { Tensor::from_ptr(grad) });
            found.places.push(place);
        }
        Ok(found)
    }

    /// Returns each gradient together with the index of its parameter.
    pub(crate) fn with_places(&self) -> impl Iterator<Item = (usize, &Tensor)> {
        self.places.iter().copied().zip(&self.tensors)
    }
}

impl Deref for Grads {
    type Target = [Tensor];

    fn deref(&self) -> &[Tensor] {
        &self.tensors
    }
}

impl Drop for Grads {
    fn drop(&mut self) {
        // SAFETY: the handles in `tensors` are not dropped. `amp_grads` made `list`, which is freed
        // only here.
        unsafe {
            self.tensors.set_len(0);
            amp_grads_drop(self.list);
        }
    }
}

/// Sets which dtypes the gradients of these leaf tensors may have (PyTorch's `grad_dtype`). If
/// `any` is true, backward passes may store gradients of any dtype. If `any` is false, a gradient
/// must have the dtype of its leaf tensor.
pub(crate) fn allow_any_grad_dtype(tensors: &[Tensor], any: bool) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_allow_any_grad_dtype(tensors.as_ptr(), tensors.len(), c_int::from(any)))
}

/// Drops the gradients of all tensors (PyTorch's `zero_grad(set_to_none=True)`).
pub(crate) fn clear_grads<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    let tensors = handles(tensors);
    checked!(amp_clear_grads(tensors.as_ptr(), tensors.len()))
}

/// Returns a number that identifies a tensor: two handles have the same number exactly if they are
/// handles of the same tensor.
pub(crate) fn identity(tensor: &Tensor) -> usize {
    // SAFETY: the handle is live; the returned address is never dereferenced.
    unsafe { amp_identity(tensor.as_ptr()) as usize }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use tch::Device;

    use super::*;

    #[test]
    fn what_is_not_finite_is_found_wherever_it_is() -> Result<()> {
        let largest = [
            (Kind::Half, 65504.0),
            (Kind::BFloat16, f64::from(f32::from_bits(0x7f7f_0000))),
            (Kind::Float, f64::from(f32::MAX)),
            (Kind::Double, f64::MAX),
        ];
        for (kind, largest) in largest {
            // A vector instruction of the CPU processes several elements at once. Some of these
            // lengths are less than one vector, others are several vectors and a remainder.
            for length in [1, 7, 33, 300] {
                let finite = Tensor::f_full([length], -largest, (kind, Device::Cpu))?;
                assert!(all_finite(slice::from_ref(&finite))?, "{length} elements of {kind:?}");
                for at in [0, length / 2, length - 1] {
                    for bad in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
                        let spoilt = finite.f_detach_copy()?;
                        let _ = spoilt.f_narrow(0, at, 1)?.f_fill_(bad)?;
                        let all = all_finite(&[finite.shallow_clone(), spoilt])?;
                        assert!(!all, "{bad} at index {at} of {length} elements of {kind:?}");
                    }
                }
            }
        }
        Ok(())
    }
}
