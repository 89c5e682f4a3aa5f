//! Rounds the intermediate tensors of a layer that runs separately.

use std::{collections::BTreeMap, rc::Rc};

use amp_core::{
    Result,
    nn::{Substitute, with_rounded_gradient},
    tch::{Kind, Tensor},
};

use crate::rounding::{is_narrow, rounded};

/// The dtypes of modules' intermediate tensors in a step, by the module's path and the tensor's
/// name.
pub(super) type Inner = BTreeMap<(String, String), Kind>;

/// Rounds the intermediate tensors of one layer as a 16-bit precision does.
pub(super) struct Inside {
    path: String,
    to: Kind,
    /// The dtypes under the precision. Tensors that are not listed belong to a fused operation, and
    /// are rounded to the dtype `to`.
    inner: Rc<Inner>,
}

impl Inside {
    /// Creates the code for the layer at `path`, which computes in the dtype `to`.
    pub(super) fn new(path: &str, to: Kind, inner: &Rc<Inner>) -> Self {
        Self { path: path.to_owned(), to, inner: Rc::clone(inner) }
    }
}

impl Substitute for Inside {
    fn given(&self, _: &str, input: &Tensor) -> Result<Tensor> {
        Ok(input.shallow_clone())
    }

    fn returned(&self, _: &str, output: &Tensor) -> Result<Tensor> {
        Ok(output.shallow_clone())
    }

    fn within(&self, path: &str, name: &str, inner: &Tensor) -> Result<Tensor> {
        let kind = self.inner.get(&(path.to_owned(), name.to_owned())).copied();
        match kind.unwrap_or(self.to) {
            kind if path == self.path && is_narrow(kind) => rounded(inner, kind),
            _ => Ok(inner.shallow_clone()),
        }
    }

    fn next_use(&self, path: &str, inner: &Tensor) -> Result<Tensor> {
        match path == self.path {
            true => with_rounded_gradient(inner, self.to),
            false => Ok(inner.shallow_clone()),
        }
    }
}
