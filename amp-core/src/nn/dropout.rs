use tch::Tensor;

use super::{Context, Fusable, Module, Visit, Visitor};
use crate::{Error, Result, ffi};

/// Sets elements to zero with probability p in training, and scales the rest by 1/(1−p). On CUDA
/// the dropped elements are recomputed from the state of libtorch's generator, so no mask is
/// stored.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    p: f64,
}

impl Dropout {
    /// Drops with probability `p`.
    ///
    /// # Errors
    /// When `p` is outside `[0, 1]`.
    pub fn new(p: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&p) {
            return Err(Error::config(format!("dropout({p}): a probability is in [0, 1]")));
        }
        Ok(Self { p })
    }

    /// Returns the dropout probability in this pass: 0 outside training.
    pub(super) fn active(&self, cx: &Context) -> f64 {
        if cx.drops_out() { self.p } else { 0.0 }
    }
}

impl Visit for Dropout {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Dropout {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        let p = self.active(cx);
        if input.device().is_cuda() && p > 0.0 && p < 1.0 && ffi::own_kernels() {
            return ffi::dropout(input, p, 1);
        }
        Ok(input.f_dropout(p, true)?)
    }

    fn fusable(&self) -> Fusable<'_> {
        Fusable::Dropout(self)
    }
}

/// Zeroes whole channels of each example of `[N, C, …]` with probability p in training, and scales
/// the rest by 1/(1−p); nn.Dropout1d, nn.Dropout2d and nn.Dropout3d.
#[derive(Debug, Clone, Copy)]
pub struct ChannelDropout(Dropout);

impl ChannelDropout {
    /// Drops with probability `p`.
    ///
    /// # Errors
    /// When `p` is outside `[0, 1]`.
    pub fn new(p: f64) -> Result<Self> {
        Dropout::new(p).map(Self)
    }
}

impl Visit for ChannelDropout {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for ChannelDropout {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        if input.dim() < 3 {
            return Err(Error::config(format!(
                "dropout of channels: the input is {:?}, but must be [batch, channels, …]; dropout drops elements",
                input.size()
            )));
        }
        Ok(input.f_feature_dropout(self.0.active(cx), true)?)
    }
}
