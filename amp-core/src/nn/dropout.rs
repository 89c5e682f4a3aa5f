use tch::Tensor;

use super::{Context, Module, Visitor};
use crate::{Error, Result};

/// Zeroes elements with probability p while training and scales the rest by 1/(1−p).
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
            return Err(Error::config(format!("dropout({p}): a probability lies in [0, 1]")));
        }
        Ok(Self { p })
    }
}

impl Module for Dropout {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        Ok(input.f_dropout(self.p, cx.drops_out())?)
    }

    fn visit(&self, _: &mut dyn Visitor) {}
}
