//! Observers, which receive or replace the tensors of the modules in a forward pass.

use std::rc::Rc;

use tch::{Kind, Tensor};

use super::Op;
use crate::{Result, precision::RegionPlan};

/// Observes the tensors of every module in a forward pass. In an observed pass, layers are not
/// fused, but run one by one. A probe does not slow down forward passes that it does not observe.
pub trait Probe {
    /// Receives a module that has run. The probe has then already received all modules within it.
    fn ran(&self, call: &Call<'_>);

    /// Receives an intermediate tensor that the module at this dotted path passes to
    /// [`Context::within`](super::Context::within) under the name `name`.
    fn inner(&self, path: &str, name: &str, inner: &Tensor) {
        let _ = (path, name, inner);
    }

    /// Receives a call of a libtorch operator that draws floating-point random numbers. Only passes
    /// of the trainer and of [`first_loss`](crate::trainer::first_loss) report such calls.
    fn draw(&self, draw: &Draw<'_>) {
        let _ = draw;
    }
}

/// A module that has run in the observed forward pass, with one of its inputs and one of its
/// outputs. A module with several outputs is reported once for each output.
pub struct Call<'a> {
    /// The module's dotted path.
    pub path: &'a str,
    /// The kind of computation that the module itself does, without its children.
    pub op: Op,
    /// The dtypes that the precision and the precision regions prescribe for the module.
    pub plan: RegionPlan,
    /// The module's first floating-point input (or its first input, if none is floating-point),
    /// cast to the dtype of the module's precision region.
    pub input: &'a Tensor,
    /// One output of the module.
    pub output: &'a Tensor,
    /// Runs the module again on another input, with the same dtypes and without observers. Random
    /// numbers continue from the current state of the generator. Running statistics are not
    /// updated.
    pub rerun: &'a dyn Fn(&Tensor) -> Result<Tensor>,
    /// Runs the module again as `rerun` does, and lets the [`Substitute`] replace the module's
    /// intermediate tensors and the tensors of the modules within it.
    pub rerun_with: &'a RerunWith<'a>,
}

type RerunWith<'a> = dyn Fn(&Tensor, Rc<dyn Substitute>) -> Result<Tensor> + 'a;

/// Replaces the inputs and outputs of modules in a forward pass, for example to study rounding. In
/// such a pass, layers are not fused, but run one by one. A method that is not implemented changes
/// nothing.
pub trait Substitute {
    /// Replaces an input of the module at this dotted path.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn given(&self, path: &str, input: &Tensor) -> Result<Tensor> {
        let _ = path;
        Ok(input.shallow_clone())
    }

    /// Replaces an output of the module at this dotted path.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn returned(&self, path: &str, output: &Tensor) -> Result<Tensor> {
        let _ = path;
        Ok(output.shallow_clone())
    }

    /// Replaces an intermediate tensor of the module at this dotted path, which the module passes
    /// to [`Context::within`](super::Context::within) under the name `name`. Examples are the
    /// scores of attention and the states of a recurrent layer.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn within(&self, path: &str, name: &str, inner: &Tensor) -> Result<Tensor> {
        let _ = (path, name);
        Ok(inner.shallow_clone())
    }

    /// Replaces an intermediate tensor of the module at this dotted path for its second or a later
    /// use. The backward pass adds up the gradients of the uses from the last to the first.
    /// Therefore, when the gradient of the replacement is computed, it contains the gradients of
    /// this use and of all later uses.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn next_use(&self, path: &str, inner: &Tensor) -> Result<Tensor> {
        let _ = path;
        Ok(inner.shallow_clone())
    }

    /// Replaces a weight of the module at this dotted path for one use in a matrix product or a
    /// convolution. A module may use a weight several times in a forward pass, and `casts` says how
    /// the gradients of these uses are added up.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn weight(&self, path: &str, weight: &Tensor, casts: Casts) -> Result<Tensor> {
        let _ = (path, casts);
        Ok(weight.shallow_clone())
    }
}

/// How often a weight is cast to 16 bits if several operations of a forward pass use it. If the
/// operations share one cast, the backward pass adds up their gradients in 16 bits. If the
/// operations have separate casts, the backward pass adds up their gradients in the dtype of the
/// weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Casts {
    /// All operations share one cast, which the cache of autocast or the module keeps.
    Once,
    /// Each call of the module casts the weight.
    EachCall,
}

/// Observes the dtypes of every module in a forward pass. The pass computes the same values as
/// without an observer. If layers are fused, each of them is reported.
pub trait DtypeProbe {
    /// Receives the dtype of a module's output, after the module and all modules within it have
    /// run.
    fn module_output(&self, output: &ModuleOutput<'_>);

    /// Receives a matrix product that libtorch has computed, in a module or outside of all modules.
    fn matrix_product(&self, product: &Product<'_>) {
        let _ = product;
    }

    /// Receives a call of a libtorch operator that draws floating-point random numbers.
    fn draw(&self, draw: &Draw<'_>) {
        let _ = draw;
    }
}

/// A call of a libtorch operator that draws floating-point random numbers anywhere in a forward
/// pass. From the same state of the generator, the operator draws different numbers in different
/// dtypes.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// The dotted path of the innermost module that was running.
    pub path: &'a str,
    /// The name of libtorch's operator, such as `randn_like`.
    pub operator: &'a str,
    /// The dtype in which the random numbers are drawn. On CUDA, 16-bit numbers are drawn in f32
    /// and then rounded.
    pub kind: Kind,
}

/// A matrix product or convolution that libtorch computed anywhere in a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// The dotted path of the innermost module that was running.
    pub path: &'a str,
    /// The name of libtorch's operator, such as `matmul` or `conv2d`.
    pub operator: &'a str,
    /// The dtypes that the precision and the precision regions prescribe for this module.
    pub plan: RegionPlan,
    /// The dtype of the output. It is always floating-point.
    pub kind: Kind,
}

/// Observes the groups of fused layers in a forward pass. The pass computes the same values as
/// without an observer. If the device has no kernel for a group, the group is not fused and not
/// reported.
pub trait GroupProbe {
    /// Receives a group after its layers have run fused.
    fn ran(&self, group: &Group<'_>);
}

/// A group of layers that have run fused.
pub struct Group<'a> {
    /// The dotted paths of the layers, in the order in which they run. Operations that are not
    /// modules have no path. Examples are the sum of a residual block, or an activation that a
    /// module applies itself.
    pub paths: &'a [String],
    /// The dtypes that the precision and the precision regions prescribe for the layers.
    pub plan: RegionPlan,
    /// The group's inputs.
    pub inputs: &'a [&'a Tensor],
    /// The group's output.
    pub output: &'a Tensor,
    /// Runs the group fused on other inputs. Returns `None` if the kernels do not support these
    /// inputs. Running statistics are not updated.
    pub fused: &'a dyn Fn(&[&Tensor]) -> Result<Option<Tensor>>,
    /// Runs the layers of the group one by one on other inputs. Running statistics are not updated.
    pub apart: &'a dyn Fn(&[&Tensor]) -> Result<Tensor>,
}

/// Observes the beginning and the end of each module in a forward pass. In an observed pass, layers
/// are not fused, but run one by one.
pub(crate) trait Trace {
    /// Receives the beginning of a module: its dotted path, the full name of its type, and the
    /// shapes of its inputs.
    fn began(&self, path: &str, type_name: &'static str, inputs: Vec<Vec<i64>>);

    /// Receives the end of the innermost running module, with the shapes of its outputs.
    fn ended(&self, outputs: Vec<Vec<i64>>);
}

/// The dtype of a module's output, and the dtypes that are expected for the module.
#[derive(Debug, Clone, Copy)]
pub struct ModuleOutput<'a> {
    /// The module's dotted path.
    pub path: &'a str,
    /// The kind of computation that the module itself does, without its children.
    pub op: Op,
    /// The dtypes that the precision and the precision regions prescribe for the module.
    pub plan: RegionPlan,
    /// The output's dtype.
    pub kind: Kind,
}

/// The observer of a forward pass, if there is one.
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
