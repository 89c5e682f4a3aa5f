//! Unscales gradients, and records whether all gradients are finite.

use std::marker::PhantomData;

use tch::{Device, Kind};

use super::{
    Deferred, GradScaler, Gradients, Mode, Scaled, Unscaled, Use,
    gradients::{FoundInf, check_finite, unscale_group},
};
use crate::{Error, Result, ffi, precision::clip};

impl GradScaler {
    /// Divides gradients by the scale in place, and records on the device whether all are finite.
    ///
    /// # Errors
    /// When there are no gradients, a parameter is f16 (because f16 cannot represent all unscaled
    /// gradients), or the gradients were already unscaled.
    pub fn unscale(&mut self, gradients: Gradients<Scaled>) -> Result<Gradients<Unscaled>> {
        if self.mode == Mode::Off {
            return Ok(self.unscaled_by(gradients, None));
        }
        self.refuse_unusable(&gradients)?;
        let tensors = &gradients.tensors;
        if self.mode == Mode::Check && self.device == Device::Cpu {
            let bad = self.losses.bad_on_host() || !ffi::all_finite(tensors)?;
            return Ok(self.unscaled_by(gradients, Some(FoundInf::Known(bad))));
        }
        let found_inf = self.losses.found_inf(self.device)?;
        match self.mode {
            Mode::Check => check_finite(tensors, &found_inf)?,
            _ => {
                let inv_scale = clip::reciprocal(&self.scale)?;
                clip::by_dtype(tensors, |kind, group| {
                    unscale_group(kind, group, &found_inf, &inv_scale)?;
                    Ok(Vec::new())
                })?;
            }
        }
        Ok(self.unscaled_by(gradients, Some(FoundInf::Device(found_inf))))
    }

    /// Unscales and clips the gradients, as [`unscale`](Self::unscale) and
    /// [`clip_grad_norm`](Gradients::clip_grad_norm) do, but with one pass over the gradients less.
    /// The norm of the scaled gradients shows whether all gradients are finite. One multiplication
    /// then unscales and clips them. If the scale is a power of two, the result is bit-identical to
    /// that of these two methods. Finite gradients stay finite, and gradients that are not finite
    /// do not become finite.
    ///
    /// # Errors
    /// When [`unscale`](Self::unscale) would return an error for these gradients.
    pub fn unscale_and_clip_norm(
        &mut self,
        gradients: Gradients<Scaled>,
        max_norm: f64,
    ) -> Result<Gradients<Unscaled>> {
        if self.mode == Mode::Off {
            let gradients = self.unscale(gradients)?;
            let _ = gradients.clip_grad_norm(max_norm)?;
            return Ok(gradients);
        }
        let mut gradients = self.defer(gradients, max_norm)?;
        if let Some(factor) = gradients.factor.take() {
            // A factor of NaN would make every gradient NaN, so that the parameter whose gradient
            // was not finite could not be found.
            clip::multiply(&gradients.tensors, &factor.f_nan_to_num(1.0, None, None)?)?;
        }
        Ok(gradients.into_state())
    }

    /// Checks the gradients and computes the factor as
    /// [`unscale_and_clip_norm`](Self::unscale_and_clip_norm) does, but leaves the gradients
    /// scaled. The optimizer's kernel later multiplies the gradients by the factor. With an
    /// infinite `max_norm` nothing is clipped.
    ///
    /// # Errors
    /// When [`unscale`](Self::unscale) would return an error for these gradients.
    pub(crate) fn defer(
        &mut self,
        gradients: Gradients<Scaled>,
        max_norm: f64,
    ) -> Result<Gradients<Deferred>> {
        let found_inf = match self.mode {
            Mode::Off => None,
            _ => {
                self.refuse_unusable(&gradients)?;
                Some(self.losses.found_inf(self.device)?)
            }
        };
        let scale = (self.mode == Mode::Scale).then_some(&self.scale);
        let tensors = &gradients.tensors;
        let (_, factor) = clip::norm_and_factor(tensors, scale, max_norm, found_inf.as_ref())?;
        let unscaled = self.unscaled_by(gradients, found_inf.map(FoundInf::Device));
        Ok(Gradients { factor: Some(factor), ..unscaled.into_state() })
    }

    fn unscaled_by(
        &mut self,
        gradients: Gradients<Scaled>,
        found_inf: Option<FoundInf>,
    ) -> Gradients<Unscaled> {
        let Gradients { parameters, tensors, owner, .. } = gradients;
        if let Some(found_inf) = &found_inf {
            let found_inf = found_inf.shallow_clone();
            self.iteration.push(Use { owner, found_inf, overflowed: None });
        }
        Gradients { parameters, tensors, found_inf, factor: None, owner, state: PhantomData }
    }

    fn refuse_unusable(&self, gradients: &Gradients<Scaled>) -> Result<()> {
        let Gradients { parameters, tensors, owner, .. } = gradients;
        self.refuse_second_use(*owner)?;
        if tensors.is_empty() {
            return Err(Error::Scaler(
                "no parameter has a gradient: run the backward pass of the scaled loss first"
                    .into(),
            ));
        }
        if self.mode != Mode::Scale {
            return Ok(());
        }
        let owner = |(place, _): (usize, _)| &parameters[place];
        match tensors.with_places().map(owner).find(|owner| owner.tensor.kind() == Kind::Half) {
            None => Ok(()),
            Some(owner) => Err(Error::Scaler(format!(
                "`{}` has f16 gradients, which cannot be unscaled: keep its weights in f32 (16-mixed), or train without a scaler (16-true)",
                owner.name
            ))),
        }
    }
}
