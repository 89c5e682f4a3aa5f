//! Observers of the modules in a forward pass.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::Op;
use crate::{Result, precision::RegionPlan};

/// Observes the tensors of every module in one forward pass. Each module then runs alone, even if it
/// would be fused with others. Only an observed step has a cost.
pub trait Probe {
    /// Runs after a module has run, and after the modules within it have run.
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

/// Observes the dtypes of every module in one forward pass, which is computed as without an observer.
/// Fused layers are reported one by one.
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
    /// The dtype of the output, which is floating.
    pub kind: Kind,
}

/// Observes groups of fused layers; the pass is computed as without it. Groups are the ones for
/// which the device has kernels; a pass may have none.
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
    /// Its inputs.
    pub inputs: &'a [&'a Tensor],
    /// Its outputs.
    pub output: &'a Tensor,
    /// Runs it again on other inputs, fused; `None` if the kernels do not support them. Batch
    /// statistics are not updated.
    pub fused: &'a dyn Fn(&[&Tensor]) -> Result<Option<Tensor>>,
    /// Runs its layers one after the other on other inputs. Batch statistics are not updated.
    pub apart: &'a dyn Fn(&[&Tensor]) -> Result<Tensor>,
}

/// Observes where the modules of a forward pass begin and end. Each module then runs alone.
pub(crate) trait Trace {
    /// Runs when a module begins: its dotted path, the full name of its type, and the shapes of its
    /// inputs.
    fn began(&self, path: &str, type_name: &'static str, inputs: Vec<Vec<i64>>);

    /// Runs when the most recently started module that is still running ends.
    fn ended(&self, outputs: Vec<Vec<i64>>);
}

/// The kind of a module's output.
#[derive(Debug, Clone, Copy)]
pub struct ModuleOutput<'a> {
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
