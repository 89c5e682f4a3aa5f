//! The values on which a gradient scaler works: a scaled loss, the gradients of that loss, and the
//! outcome of the optimizer step.

use std::{marker::PhantomData, rc::Rc};

use tch::{Device, Kind, Tensor};

use crate::{
    Result,
    ffi::{self, Grads},
    optimizer::Optimizer,
    parameter::Parameter,
    precision::{Clip, clip},
};

/// Marks [`Gradients`] that are multiplied by the loss scale.
#[derive(Debug)]
pub struct Scaled;
/// Marks [`Gradients`] that were divided by the loss scale.
#[derive(Debug)]
pub struct Unscaled;
/// Marks [`Gradients`] that are ready for the step. If they are still multiplied by the loss scale,
/// the step itself unscales and clips them.
#[derive(Debug)]
pub struct Deferred;

/// The gradients of one optimizer's parameters, between the backward pass and the step.
#[derive(Debug)]
#[must_use = "gradients do nothing until they are unscaled and stepped"]
pub struct Gradients<S> {
    pub(super) parameters: Rc<[Parameter]>,
    pub(super) tensors: Grads,
    pub(super) found_inf: Option<FoundInf>,
    /// A scalar on the device by which the optimizer step must still multiply the gradients. `None`
    /// if the gradients are already unscaled and clipped.
    pub(super) factor: Option<Tensor>,
    pub(super) owner: usize,
    pub(super) state: PhantomData<S>,
}

/// Whether a loss or gradient was not finite. The answer may be only on the device.
#[derive(Debug)]
pub(super) enum FoundInf {
    /// The host already knows whether a value was not finite.
    Known(bool),
    /// An f32 scalar on the device, which is 0 unless a value was not finite.
    Device(Tensor),
}

impl FoundInf {
    /// Returns whether a loss or gradient was not finite. Waits for the device.
    pub(super) fn read(&self) -> Result<bool> {
        match self {
            Self::Known(found) => Ok(*found),
            Self::Device(found) => Ok(found.f_double_value(&[])? != 0.0),
        }
    }

    /// Returns a scalar on `device` that is not 0 if a loss or gradient was not finite.
    pub(super) fn on(&self, device: Device) -> Result<Tensor> {
        match self {
            Self::Known(found) => {
                let found = f64::from(u8::from(*found));
                Ok(Tensor::f_full([0_i64; 0], found, (Kind::Float, device))?)
            }
            Self::Device(found) => Ok(found.shallow_clone()),
        }
    }

    pub(super) fn shallow_clone(&self) -> Self {
        match self {
            Self::Known(found) => Self::Known(*found),
            Self::Device(found) => Self::Device(found.shallow_clone()),
        }
    }
}

/// A loss that is multiplied by the loss scale. All you can do with it is to run its backward pass.
/// The product itself is never computed: the backward pass starts with the gradient of the product
/// with respect to the loss, which is the scale.
#[derive(Debug)]
#[must_use = "a scaled loss is only for its backward pass"]
pub struct ScaledLoss {
    pub(super) loss: Tensor,
    /// The factor by which the loss is multiplied, in f32 on the device of the loss. `None` means
    /// 1.
    pub(super) scale: Option<Tensor>,
}

/// Whether an optimizer step was applied or skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a skipped step must not advance the schedule"]
pub enum StepOutcome {
    /// The optimizer updated its parameters.
    Applied,
    /// A gradient or the loss was not finite, and nothing changed.
    Skipped {
        /// The first parameter, in the order of declaration, whose gradient is not finite. `None`
        /// if all gradients are finite.
        culprit: Option<String>,
    },
}

impl ScaledLoss {
    /// Runs the backward pass, which adds the gradients of the scaled loss to the parameters'
    /// gradients.
    ///
    /// # Errors
    /// When the loss does not depend on a parameter.
    pub fn backward(self) -> Result<()> {
        ffi::backward(&self.loss, self.scale.as_ref())
    }
}

impl Gradients<Unscaled> {
    /// Scales the gradients so that their global 2-norm is at most `max_norm`, as
    /// [`clip_grad_norm`](crate::precision::clip_grad_norm) does. Returns the norm before clipping.
    ///
    /// # Errors
    /// When libtorch cannot compute the norm or scale a gradient.
    pub fn clip_grad_norm(&self, max_norm: f64) -> Result<Tensor> {
        clip::clip_grad_norm(&self.tensors, max_norm)
    }

    /// Clamps each element to `[-limit, limit]`, as
    /// [`clip_grad_value`](crate::precision::clip_grad_value) does.
    ///
    /// # Errors
    /// When libtorch cannot clamp a gradient.
    pub fn clip_grad_value(&self, limit: f64) -> Result<()> {
        clip::clip_grad_value(&self.tensors, limit)
    }

    /// Clips the gradients by norm or by value. The norm stays on the device.
    ///
    /// # Errors
    /// When the limit is out of range, or libtorch fails.
    pub fn clip(&self, clip: Clip) -> Result<()> {
        match clip.validated()? {
            Clip::Norm(limit) => self.clip_grad_norm(limit).map(drop),
            Clip::Value(limit) => self.clip_grad_value(limit),
        }
    }

    /// Returns each gradient with its parameter's name, in the order in which the model declares
    /// the parameters.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let grads = self.tensors.with_places();
        grads.map(|(place, grad)| (self.parameters[place].name.as_str(), grad))
    }

    /// Returns the 2-norm of all gradients together, as a scalar on the device. See
    /// [`grad_norm`](crate::precision::grad_norm).
    ///
    /// # Errors
    /// When libtorch cannot compute the norm.
    pub fn norm(&self) -> Result<Tensor> {
        clip::grad_norm(&self.tensors)
    }

    /// Returns the number of parameters whose gradient contains a NaN, as a scalar on the device.
    ///
    /// # Errors
    /// When libtorch cannot compare a gradient.
    pub fn nan_count(&self) -> Result<Tensor> {
        self.count(|grad| Ok(grad.f_isnan()?))
    }

    /// Returns the number of parameters whose gradient contains an infinity, as a scalar on the
    /// device.
    ///
    /// # Errors
    /// When libtorch cannot compare a gradient.
    pub fn inf_count(&self) -> Result<Tensor> {
        self.count(|grad| Ok(grad.f_isinf()?))
    }

    fn count(&self, is: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let any = |grad: &Tensor| Ok(is(grad)?.f_any()?);
        let flags = self.tensors.iter().map(any).collect::<Result<Vec<_>>>()?;
        match flags.is_empty() {
            true => Ok(Tensor::from(0_i64)),
            false => Ok(Tensor::f_stack(&flags, 0)?.f_sum(Kind::Int64)?),
        }
    }
}

impl<S> Gradients<S> {
    /// Returns whether the gradients belong to this optimizer's parameters.
    pub(crate) fn are_of(&self, optimizer: &dyn Optimizer) -> bool {
        super::owner(optimizer.parameters()) == self.owner
    }

    /// Returns whether no parameter of the optimizer has a gradient.
    pub(crate) fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    pub(super) fn first_non_finite(&self) -> Result<Option<String>> {
        for (place, grad) in self.tensors.with_places() {
            if grad.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Ok(Some(self.parameters[place].name.clone()));
            }
        }
        Ok(None)
    }

    /// Returns the same gradients, marked with the state `T`.
    pub(super) fn into_state<T>(self) -> Gradients<T> {
        let Self { parameters, tensors, found_inf, factor, owner, .. } = self;
        Gradients { parameters, tensors, found_inf, factor, owner, state: PhantomData }
    }
}

impl Gradients<Deferred> {
    /// Returns the factor by which the optimizer step multiplies each gradient. Returns `None` if
    /// the gradients are already unscaled and clipped.
    pub(crate) fn factor(&self) -> Option<&Tensor> {
        self.factor.as_ref()
    }
}

/// Converts gradients that are already unscaled and clipped. The optimizer step then does not
/// multiply them by a factor.
impl From<Gradients<Unscaled>> for Gradients<Deferred> {
    fn from(unscaled: Gradients<Unscaled>) -> Self {
        unscaled.into_state()
    }
}

/// Sets `found_inf` to NaN if an element of a gradient is not finite. For this, it is enough to
/// check the largest magnitude in each gradient, which is then NaN or infinite.
pub(super) fn check_finite(grads: &[Tensor], found_inf: &Tensor) -> Result<()> {
    let largest = clip::by_dtype(grads, |_, group| {
        let sizes = ffi::foreach_norm(group, f64::INFINITY, false)?;
        Ok(vec![Tensor::f_stack(&sizes, 0)?.f_max()?])
    })?;
    largest.iter().try_for_each(|largest| clip::note_norm(largest, found_inf))
}

/// Unscales the gradients of one dtype. PyTorch's CUDA kernel does not support bf16
/// (pytorch#127176), so bf16 gradients are unscaled on CUDA by a sequence of tensor operations.
pub(super) fn unscale_group(
    kind: Kind,
    grads: &[Tensor],
    found_inf: &Tensor,
    inv: &Tensor,
) -> Result<()> {
    if kind != Kind::BFloat16 || !found_inf.device().is_cuda() {
        return ffi::unscale(grads, found_inf, inv);
    }
    let mut found = found_inf.shallow_clone();
    for grad in grads {
        let bad = grad.f_isfinite()?.f_all()?.f_logical_not()?.f_to_kind(Kind::Float)?;
        found.f_copy_(&found.f_maximum(&bad)?)?;
        let mut target = grad.shallow_clone();
        target.f_copy_(&grad.f_to_kind(Kind::Float)?.f_mul(inv)?)?;
    }
    Ok(())
}
