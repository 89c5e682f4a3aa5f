//! A layer that you write yourself. The README of this crate explains it.

use amp_core::{
    Error, Result,
    nn::{Context, Module, Role, Visit, Visitor},
    tch::{Device, Kind, Tensor},
};

/// y = weight · x, with a weight for each feature, for x of shape `[…, features]`.
#[derive(Debug)]
pub struct Gain {
    weight: Tensor,
}

impl Gain {
    /// Creates a layer with one random weight per feature, from N(1, 0.1²).
    ///
    /// # Errors
    /// If `features` is not positive.
    pub fn new(features: i64) -> Result<Self> {
        if features < 1 {
            return Err(Error::config(format!("gain({features}): the size must be positive")));
        }
        let mut weight = Tensor::f_empty([features], (Kind::Float, Device::Cpu))?;
        let _ = weight.f_normal_(1.0, 0.1)?;
        Ok(Self { weight: weight.f_set_requires_grad(true)? })
    }
}

impl Visit for Gain {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight", &self.weight, Role::Parameter);
    }
}

impl Module for Gain {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        let (shape, features) = (input.size(), self.weight.size());
        if shape.last() != features.last() {
            return Err(Error::config(format!(
                "gain of {features:?} features: the input has shape {shape:?}"
            )));
        }
        Ok(input.f_mul(&self.weight)?)
    }
}

/// `cargo test` compiles and runs the README's Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Page;
