//! Sigmoid and tanh, whose derivatives depend on how the output is rounded.

use tch::Tensor;

use crate::{Result, nn::Context};

/// An activation whose derivative libtorch computes from the output. If the output is rounded to 16
/// bits, the derivative changes, too: where tanh(x) is near 1, rounding tanh(x) changes 1 −
/// tanh(x)² by a large fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nn) enum Saturating {
    Sigmoid,
    Tanh,
}

/// An input at which sigmoid and tanh equal their limits in every dtype.
const FAR: f64 = 1e4;

impl Saturating {
    /// Computes the activation, and passes the output to [`Context::within`] under `name`. If that
    /// call returns another tensor in place of the output, the backward pass computes the
    /// derivative from the returned tensor, as libtorch computes it from a rounded output.
    pub(in crate::nn) fn run(self, name: &str, x: &Tensor, cx: &Context) -> Result<Tensor> {
        let plain = self.of(x)?;
        let output = cx.within(name, &plain)?;
        if !cx.has_substitutes() || output.data_ptr() == plain.data_ptr() {
            return Ok(output);
        }
        // `moved` is the input for which the activation equals `output`. The term x − detached x is
        // 0, and passes the gradient of `moved` on to x.
        let x = x.f_clamp(-FAR, FAR)?;
        let moved = self.inverse(&output.f_detach()?)?.f_add(&x.f_sub(&x.f_detach()?)?)?;
        cx.within(name, &self.of(&moved)?)
    }

    fn of(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Sigmoid => x.f_sigmoid()?,
            Self::Tanh => x.f_tanh()?,
        })
    }

    fn inverse(self, y: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Sigmoid => y.f_logit(None)?,
            Self::Tanh => y.f_atanh()?,
        })
    }
}
