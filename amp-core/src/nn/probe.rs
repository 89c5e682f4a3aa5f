//! Observers of the modules in a forward pass.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::Op;
use crate::{Result, precision::RegionPlan};

/// Observes the tensors of every module in one forward pass. Each module then runs alone, and
/// layers are not fused. Forward passes without a probe are not slower.
pub trait Probe {
    /// Runs after a module has run, and after the modules within it have run.
    fn ran(&self, call: &Call<'_>);
}

/// One run of a module.
pub struct Call<'a> {
    /// The module's dotted path.
    pub path: &'a str,
    /// The kind of the module's own computation.
    pub op: Op,
    /// The expected dtypes.
    pub plan: RegionPlan,
    /// The module's input, cast for its precision region.
    pub input: &'a Tensor,
    /// The module's output.
    pub output: &'a Tensor,
    /// Runs the module again on another input, under the same plan and without observers. Random
    /// numbers continue from their current state; batch statistics are not updated.
    pub rerun: &'a dyn Fn(&Tensor) -> Result<Tensor>,
}

/// Replaces the inputs and outputs of modules in a forward pass, for example to study rounding. Modules are not
/// fused then.
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

/// Observes the dtypes of every module in one forward pass, which computes the same as without an
/// observer. Fused layers are reported one by one.
pub trait DtypeProbe {
    /// Runs after a module has run, and after the modules within it have run.
    fn module_output(&self, output: &ModuleOutput<'_>);

    /// Runs after libtorch has multiplied matrices, within a module or between modules.
    fn matrix_product(&self, product: &Product<'_>) {
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
    /// The output's dtype, which is floating-point.
    pub kind: Kind,
}

/// Observes groups of fused layers in one forward pass, which computes the same as without an
/// observer. Only groups for which the device has kernels are reported, so there may be none.
pub trait GroupProbe {
    /// Runs after a group has run.
    fn ran(&self, group: &Group<'_>);
}

/// A group of fused layers.
pub struct Group<'a> {
    /// The dotted paths of the layers, in order. Operations without a path, such as a sum or an
    /// activation that a module applies itself, are left out.
    pub paths: &'a [String],
    /// The expected dtypes.
    pub plan: RegionPlan,
    /// The group's inputs.
    pub inputs: &'a [&'a Tensor],
    /// The group's output.
    pub output: &'a Tensor,
    /// Runs the group again on other inputs, fused; returns `None` if the kernels do not support
    /// them. Batch statistics are not updated.
    pub fused: &'a dyn Fn(&[&Tensor]) -> Result<Option<Tensor>>,
    /// Runs the group's layers one by one on other inputs. Batch statistics are not updated.
    pub apart: &'a dyn Fn(&[&Tensor]) -> Result<Tensor>,
}

/// Observes the beginning and end of each module in a forward pass. Each module then runs alone.
pub(crate) trait Trace {
    /// Runs when a module begins: its dotted path, the full name of its type, and the shapes of its
    /// inputs.
    fn began(&self, path: &str, type_name: &'static str, inputs: Vec<Vec<i64>>);

    /// Runs when the most recently started module that is still running ends.
    fn ended(&self, outputs: Vec<Vec<i64>>);
}

/// The dtype of a module's output, and the expected dtypes.
#[derive(Debug, Clone, Copy)]
pub struct ModuleOutput<'a> {
    /// The module's dotted path.
    pub path: &'a str,
    /// The kind of the module's own computation.
    pub op: Op,
    /// The expected dtypes.
    pub plan: RegionPlan,
    /// The output's dtype.
    pub kind: Kind,
}

/// What observes a forward pass.
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
