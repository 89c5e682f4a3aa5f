//! Rounds the tensors of a forward pass.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use amp_core::{
    Result,
    nn::{Casts, Substitute, with_rounded_gradient},
    precision::Precision,
    tch::{Kind, Tensor},
};

use super::{Draws, Emulation, SUMS};
use crate::rounding::{is_narrow, moved, rounded, rounded_stochastically};

/// Rounds the tensors of one forward pass: the inputs and outputs of modules, the intermediate
/// tensors that modules pass to [`Substitute::within`], and the gradients of weights.
pub(super) struct Between {
    emulation: Rc<Emulation>,
    draws: Rc<Draws>,
    moves: bool,
    /// For each weight, by the address of its elements, the latest of its aliases (tensors with the
    /// same elements). Each use of the weight makes an alias of the previous alias, see
    /// [`weight`](Self::weight).
    used: RefCell<BTreeMap<usize, Tensor>>,
}

impl Between {
    /// Creates the rounding for one forward pass. If `moves` is true, values are perturbed at
    /// random before they are rounded.
    pub(super) fn new(emulation: &Rc<Emulation>, draws: &Rc<Draws>, moves: bool) -> Self {
        let (emulation, draws) = (Rc::clone(emulation), Rc::clone(draws));
        Self { emulation, draws, moves, used: RefCell::default() }
    }

    /// Returns the dtype in which the module at `path` computes.
    fn computed(&self, path: &str) -> Option<Kind> {
        self.emulation.modules.get(path).map(|module| module.computed)
    }

    fn round(&self, tensor: &Tensor, kind: Option<Kind>) -> Result<Tensor> {
        match kind {
            _ if !matches!(tensor.kind(), Kind::Float | Kind::Double) => Ok(tensor.shallow_clone()),
            Some(kind) if is_narrow(kind) && self.moves => {
                self.draws.with(|| rounded_stochastically(tensor, kind))
            }
            Some(kind) if is_narrow(kind) => rounded(tensor, kind),
            Some(_) if self.emulation.precision == Precision::F32True => {
                self.draws.with(|| moved(tensor, SUMS))
            }
            _ => Ok(tensor.shallow_clone()),
        }
    }
}

impl Substitute for Between {
    fn given(&self, path: &str, input: &Tensor) -> Result<Tensor> {
        self.round(input, self.emulation.modules.get(path).map(|module| module.given))
    }

    fn returned(&self, path: &str, output: &Tensor) -> Result<Tensor> {
        self.round(output, self.emulation.modules.get(path).map(|module| module.returned))
    }

    fn within(&self, path: &str, name: &str, inner: &Tensor) -> Result<Tensor> {
        // If the precision fuses this operation, the dtype of the intermediate tensor was not
        // recorded. The tensor is then rounded to the dtype in which the module computes.
        let seen = self.emulation.inner.get(&(path.to_owned(), name.to_owned())).copied();
        self.round(inner, seen.or_else(|| self.computed(path)))
    }

    fn next_use(&self, path: &str, inner: &Tensor) -> Result<Tensor> {
        match self.computed(path) {
            Some(kind) if is_narrow(kind) => with_rounded_gradient(inner, kind),
            _ => Ok(inner.shallow_clone()),
        }
    }

    /// Returns an alias of the weight whose gradient is rounded in the backward pass. If several
    /// operations share one 16-bit copy of the weight, autograd adds up their gradients in 16 bits.
    /// Each use then makes an alias of the previous use's alias, so that the backward pass rounds
    /// the sum after each addition.
    fn weight(&self, path: &str, weight: &Tensor, casts: Casts) -> Result<Tensor> {
        let Some(kind) = self.computed(path).filter(|kind| is_narrow(*kind)) else {
            return Ok(weight.shallow_clone());
        };
        if casts == Casts::EachCall && !is_narrow(self.emulation.precision.storage()) {
            return with_rounded_gradient(weight, kind);
        }
        let mut used = self.used.borrow_mut();
        let before =
            used.entry(weight.data_ptr() as usize).or_insert_with(|| weight.shallow_clone());
        *before = with_rounded_gradient(before, kind)?;
        with_rounded_gradient(before, kind)
    }
}
