//! An observer that rounds the tensors of an f32 computation to 16 bits.

use std::{cell::RefCell, collections::BTreeMap};

use amp_core::{
    Result,
    nn::{Casts, Substitute, with_rounded_gradient},
    tch::{Kind, Tensor},
};

/// Rounds inputs, outputs and intermediate tensors to the dtype `to`. Also rounds the gradients of
/// weights: that of each use of a weight, and their sum.
pub(crate) struct Rounds {
    to: Kind,
    used: RefCell<BTreeMap<usize, Tensor>>,
}

impl Rounds {
    pub(crate) fn to(to: Kind) -> Self {
        Self { to, used: RefCell::default() }
    }

    fn round(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_to_kind(self.to)?.f_to_kind(tensor.kind())?)
    }
}

impl Substitute for Rounds {
    fn given(&self, _: &str, input: &Tensor) -> Result<Tensor> {
        self.round(input)
    }

    fn returned(&self, _: &str, output: &Tensor) -> Result<Tensor> {
        self.round(output)
    }

    fn within(&self, _: &str, _: &str, inner: &Tensor) -> Result<Tensor> {
        self.round(inner)
    }

    fn next_use(&self, _: &str, inner: &Tensor) -> Result<Tensor> {
        with_rounded_gradient(inner, self.to)
    }

    fn weight(&self, _: &str, weight: &Tensor, _: Casts) -> Result<Tensor> {
        let mut used = self.used.borrow_mut();
        let last = used.entry(weight.data_ptr() as usize).or_insert_with(|| weight.shallow_clone());
        *last = with_rounded_gradient(last, self.to)?;
        with_rounded_gradient(last, self.to)
    }
}

/// Computes ‖a − b‖/‖b‖.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).norm() / b.norm()).double_value(&[])
}
