//! Who sees the modules of a forward pass, and what of each.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::Op;
use crate::{Result, precision::RegionPlan};

/// Sees the tensors of every module of one forward pass, so that each runs by itself, also where
/// some would run in one. Only a probed step pays for it.
pub trait Probe {
    /// A module has run, after the modules within it.
    fn ran(&self, call: &Call<'_>);
}

/// One module's run.
pub struct Call<'a> {
    /// The module's dotted path.
    pub path: &'a str,
    /// What it computes itself.
    pub op: Op,
    /// The dtypes that ought to hold there.
    pub plan: RegionPlan,
    /// What it was given, cast for its region.
    pub input: &'a Tensor,
    /// What it returned.
    pub output: &'a Tensor,
    /// Runs it once more on another input, under the same plan and unobserved. Random numbers go
    /// on from where they are; batch statistics are not counted.
    pub rerun: &'a dyn Fn(&Tensor) -> Result<Tensor>,
}

/// Puts other tensors in place of those that the modules of a forward pass are given and return, as a
/// study of rounding does. Each module then runs by itself.
pub trait Substitute {
    /// In place of a tensor that the module at this dotted path is given.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn given(&self, path: &str, input: &Tensor) -> Result<Tensor>;

    /// In place of a tensor that it returns.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn returned(&self, path: &str, output: &Tensor) -> Result<Tensor>;

    /// In place of a tensor that it computes on its way: the queries, keys, values and weights of attention.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn within(&self, path: &str, inner: &Tensor) -> Result<Tensor> {
        let _ = path;
        Ok(inner.shallow_clone())
    }
}

/// Sees the dtypes of every module of one forward pass, which is computed as without it: of layers
/// that run in one it is told one by one.
pub trait DtypeProbe {
    /// A module has run, after the modules within it.
    fn gave(&self, given: &Given<'_>);

    /// libtorch has multiplied matrices, within a module or between modules.
    fn multiplied(&self, product: &Product<'_>) {
        let _ = product;
    }
}

/// A matrix product or convolution of libtorch's, in any code of a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// The dotted path of the innermost module that ran.
    pub path: &'a str,
    /// libtorch's name of the operator: `matmul`, `conv2d`.
    pub operator: &'a str,
    /// The dtypes that ought to hold there.
    pub plan: RegionPlan,
    /// The dtype of the output, a floating one.
    pub kind: Kind,
}

/// Sees the layers that run in one, as groups: the pass is computed as without it. Groups are those that the device
/// has kernels for; a pass without any shows none.
pub trait GroupProbe {
    /// A group has run.
    fn ran(&self, group: &Group<'_>);
}

/// Layers that ran in one.
pub struct Group<'a> {
    /// The dotted paths of the layers, in their order. What has no path of its own, as a sum or an activation that
    /// a module applies itself, is not among them.
    pub paths: &'a [String],
    /// The dtypes that ought to hold there.
    pub plan: RegionPlan,
    /// What it was given.
    pub inputs: &'a [&'a Tensor],
    /// What it returned.
    pub output: &'a Tensor,
    /// Runs it once more on other inputs, in one; `None` where the kernels are not for these. Batch statistics are
    /// not counted.
    pub fused: &'a dyn Fn(&[&Tensor]) -> Result<Option<Tensor>>,
    /// Runs its layers on other inputs one after the other. Batch statistics are not counted.
    pub apart: &'a dyn Fn(&[&Tensor]) -> Result<Tensor>,
}

/// What kind of output a module gave.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The module's dotted path.
    pub path: &'a str,
    /// What it computes itself.
    pub op: Op,
    /// The dtypes that ought to hold there.
    pub plan: RegionPlan,
    /// The dtype of what it returned.
    pub kind: Kind,
}

/// Who sees the modules of a pass.
#[derive(Default)]
pub(super) enum Observer {
    #[default]
    Nobody,
    Tensors(Rc<dyn Probe>),
    Dtypes(Rc<dyn DtypeProbe>),
    Groups(Rc<dyn GroupProbe>),
    Substitutes(Rc<dyn Substitute>),
}
