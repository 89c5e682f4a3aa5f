//! Observers of the modules in a forward pass.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::Op;
use crate::{Result, precision::RegionPlan};

/// Observes the tensors of every module in one forward pass. Each module then runs alone, even if it
/// would be fused with others. Only an observed step has a cost.
pub trait Probe {
    /// Called after a module has run, and after the modules within it.
    fn ran(&self, call: &Call<'_>);
}

/// The run of one module.
pub struct Call<'a> {
    /// The module's dotted path.
    pub path: &'a str,
    /// Its own computation.
    pub op: Op,
    /// The expected dtypes.
    pub plan: RegionPlan,
    /// Its input, cast for its precision region.
    pub input: &'a Tensor,
    /// Its output.
    pub output: &'a Tensor,
    /// Runs it again on another input, under the same plan and without observers. Random numbers continue
    /// from their current state; batch statistics are not updated.
    pub rerun: &'a dyn Fn(&Tensor) -> Result<Tensor>,
}

/// Replaces the tensors that modules get and return in a forward pass, for example to study rounding.
/// Each module then runs alone.
pub trait Substitute {
    /// Replaces an input of the module at this dotted path.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn given(&self, path: &str, input: &Tensor) -> Result<Tensor>;

    /// Replaces an output of the module.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn returned(&self, path: &str, output: &Tensor) -> Result<Tensor>;

    /// Replaces an intermediate tensor of the module: the queries, keys, values and weights of attention.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn within(&self, path: &str, inner: &Tensor) -> Result<Tensor> {
        let _ = path;
        Ok(inner.shallow_clone())
    }
}

/// Observes the dtypes of every module in one forward pass, which is computed as without an observer.
/// Fused layers are reported one by one.
pub trait DtypeProbe {
    /// Called after a module has run, and after the modules within it.
    fn gave(&self, given: &Given<'_>);

    /// Called after libtorch has multiplied matrices, within a module or between modules.
    fn multiplied(&self, product: &Product<'_>) {
        let _ = product;
    }
}

/// A matrix product or convolution by libtorch, anywhere in the code of a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// The dotted path of the innermost module that ran.
    pub path: &'a str,
    /// libtorch's name of the operator: `matmul`, `conv2d`.
    pub operator: &'a str,
    /// The expected dtypes.
    pub plan: RegionPlan,
    /// The dtype of the output, which is floating.
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

/// Observes where the modules of a forward pass begin and end. Each module then runs alone.
pub(crate) trait Trace {
    /// A module begins: its dotted path, the full name of its type, and the shapes of its inputs.
    fn began(&self, path: &str, type_name: &'static str, inputs: Vec<Vec<i64>>);

    /// The module that began last and has not ended ends, with the shapes of its outputs.
    fn ended(&self, outputs: Vec<Vec<i64>>);
}

/// The kind of a module's output.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The module's dotted path.
    pub path: &'a str,
    /// Its own computation.
    pub op: Op,
    /// The expected dtypes.
    pub plan: RegionPlan,
    /// The dtype of its output.
    pub kind: Kind,
}

/// The observers of a pass.
#[derive(Default)]
pub(super) enum Observer {
    #[default]
    Nobody,
    Tensors(Rc<dyn Probe>),
    Dtypes(Rc<dyn DtypeProbe>),
    Groups(Rc<dyn GroupProbe>),
    Substitutes(Rc<dyn Substitute>),
    Trace(Rc<dyn Trace>),
}
