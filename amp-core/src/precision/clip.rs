//! Gradient clipping on the device, for which the host need not wait (torch/nn/utils/clip_grad.py).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Error, Result, ffi};

/// How gradients are clipped before the optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Scales all gradients so that their global 2-norm is at most this number.
    Norm(f64),
    /// Clamps every gradient element to `[-v, v]`, where v is this number.
    Value(f64),
}

impl Clip {
    /// Returns this setting if its limit is positive, and an error otherwise: a limit of 0 would
    /// set all gradients to zero, and a negative limit has no meaning.
    ///
    /// # Errors
    /// When the limit is not a positive number.
    pub fn validated(self) -> Result<Self> {
        let (Self::Norm(limit) | Self::Value(limit)) = self;
        if limit > 0.0 {
            return Ok(self);
        }
        Err(Error::config(format!("gradient clipping needs a positive limit, not {limit}")))
    }
}

/// Returns the 2-norm of all gradients together, as a scalar on the device. Without gradients the
/// norm is 0. For f16 and bf16 gradients the norm is computed in f32. (PyTorch computes it in the
/// dtype of the gradients, where a sum of squares above 65504 overflows in f16.)
///
/// # Errors
/// When libtorch fails, for example for gradients on several devices.
pub fn grad_norm(grads: &[Tensor]) -> Result<Tensor> {
    if grads.is_empty() {
        return Ok(Tensor::from(0.0_f32));
    }
    if is_on_cuda(grads) {
        return Ok(ffi::clip_factor(grads, None, f64::INFINITY, None)?.0);
    }
    let norms = by_dtype(grads, |kind, group| {
        ffi::foreach_norm(group, 2.0, matches!(kind, Kind::Half | Kind::BFloat16))
    })?;
    let wide = if norms.iter().any(|norm| norm.kind() == Kind::Double) {
        Kind::Double
    } else {
        Kind::Float
    };
    let norms = norms.iter().map(|norm| norm.f_to_kind(wide)).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_stack(&norms, 0)?.f_norm()?)
}

/// Scales `grads` in place by min(1, `max_norm` / (norm + 1e-6)), where norm is their global
/// 2-norm. Returns this norm.
///
/// The gradients are multiplied by this factor even if it is 1, so that the host need not wait for
/// the norm to decide. If the norm is infinite, the factor is 0 and infinite gradients become NaN,
/// as in PyTorch. Therefore unscale the gradients first: the scaler then checks whether they are
/// finite.
///
/// ```
/// use amp_core::{precision::clip_grad_norm, tch::Tensor};
///
/// let gradients = [Tensor::from_slice(&[3.0_f64]), Tensor::from_slice(&[4.0_f64])];
/// assert_eq!(clip_grad_norm(&gradients, 1.0)?.double_value(&[]), 5.0);
/// assert!((gradients[0].double_value(&[0]) - 0.6).abs() < 1e-6);
/// # Ok::<(), amp_core::Error>(())
/// ```
///
/// # Errors
/// When libtorch fails, for example for gradients on several devices.
pub fn clip_grad_norm(grads: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let (total, factor) = norm_and_factor(grads, None, max_norm, None)?;
    multiply(grads, &factor)?;
    Ok(total)
}

/// Computes, on the device, the norm of the scaled gradients and the factor min(1, `max_norm` /
/// (norm / `scale` + 1e-6)) / `scale`, which unscales and clips the gradients. Sets `found_inf` to
/// NaN if the norm is not finite.
pub(super) fn norm_and_factor(
    grads: &[Tensor],
    scale: Option<&Tensor>,
    max_norm: f64,
    found_inf: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    if is_on_cuda(grads) {
        return ffi::clip_factor(grads, scale, max_norm, found_inf);
    }
    let norm = grad_norm(grads)?;
    if let Some(found_inf) = found_inf {
        note_norm(&norm, found_inf)?;
    }
    let factor = match scale {
        Some(scale) => {
            let inverse = reciprocal(scale)?;
            factor(&norm.f_mul(&inverse)?, max_norm)?.f_mul(&inverse)?
        }
        None => factor(&norm, max_norm)?,
    };
    Ok((norm, factor))
}

/// Returns the reciprocal of the loss scale, computed in f64 and rounded once, as in PyTorch.
pub(super) fn reciprocal(scale: &Tensor) -> Result<Tensor> {
    Ok(scale.f_to_kind(Kind::Double)?.f_reciprocal()?.f_to_kind(Kind::Float)?)
}

/// Sets `found_inf` to NaN if a norm is not finite.
pub(super) fn note_norm(norm: &Tensor, found_inf: &Tensor) -> Result<()> {
    let zero_or_nan = norm.f_mul_scalar(0.0)?.f_to_kind(Kind::Float)?;
    let _ = found_inf.shallow_clone().f_add_(&zero_or_nan)?;
    Ok(())
}

/// Returns whether there are gradients and all gradients are on one CUDA device. A kernel of this
/// crate can then compute the norm and the factor together.
fn is_on_cuda(grads: &[Tensor]) -> bool {
    let mut devices = grads.iter().map(Tensor::device);
    devices.next().is_some_and(|first| first.is_cuda() && devices.all(|device| device == first))
}

/// Computes min(1, `max_norm` / (`norm` + 1e-6)), on the device.
fn factor(norm: &Tensor, max_norm: f64) -> Result<Tensor> {
    let quotient = norm.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max_norm)?;
    Ok(quotient.f_clamp_max(1.0)?)
}

/// Multiplies every gradient by a scalar on the device, in place.
pub(super) fn multiply(grads: &[Tensor], factor: &Tensor) -> Result<()> {
    by_dtype(grads, |kind, group| {
        ffi::foreach_mul(group, &factor.f_to_kind(kind)?)?;
        Ok(Vec::new())
    })?;
    Ok(())
}

/// Clamps every element of `grads` to `[-limit, limit]` in place.
///
/// # Errors
/// When libtorch cannot clamp a gradient.
pub fn clip_grad_value(grads: &[Tensor], limit: f64) -> Result<()> {
    by_dtype(grads, |_, group| {
        ffi::foreach_clamp(group, -limit, limit)?;
        Ok(Vec::new())
    })?;
    Ok(())
}

/// Groups the tensors by dtype, calls `each` once for each group and joins the results. A foreach
/// kernel takes tensors of only one dtype.
pub(super) fn by_dtype(
    tensors: &[Tensor],
    mut each: impl FnMut(Kind, &[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let mut kinds: Vec<Kind> = Vec::new();
    for tensor in tensors {
        if !kinds.contains(&tensor.kind()) {
            kinds.push(tensor.kind());
        }
    }
    let mut out = Vec::with_capacity(tensors.len());
    for kind in kinds {
        let group: Vec<Tensor> = tensors
            .iter()
            .filter(|tensor| tensor.kind() == kind)
            .map(Tensor::shallow_clone)
            .collect();
        out.extend(each(kind, &group)?);
    }
    Ok(out)
}
