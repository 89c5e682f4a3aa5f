use tch::Tensor;

use super::{Context, Module, Op, Visit};
use crate::{
    Result,
    precision::{Arguments, Tensors},
};

/// A module with any inputs and outputs. Every [`Module`] is a `Forward` with one tensor as input
/// and one as output. `derive(Module)` and `derive(LightningModule)` implement `Forward` for a
/// struct with an attribute such as
/// `#[forward(|x, mask: Option<&Tensor>| -> Result<(Tensor, Tensor)> { … })]`.
///
/// The inputs are passed as a tuple, whose types are in [`Input`](Self::Input). The lifetime
/// `'static` in `Input` is a placeholder: inputs may have any lifetime. To run another module, a
/// module wraps it in a [`Child`](super::Child).
///
/// ```no_run,standalone_crate
/// use amp_core::{
///     nn::{Child, Forward, Visit, Visitor},
///     prelude::*,
/// };
///
/// /// Adds up what the mask lets through.
/// struct MaskedSum;
///
/// impl Visit for MaskedSum {
///     fn visit(&self, _: &mut dyn Visitor) {}
/// }
///
/// impl Forward for MaskedSum {
///     type Input = (&'static Tensor, Option<&'static Tensor>);
///     type Output = Tensor;
///
///     fn forward_with(
///         &self,
///         (x, mask): (&Tensor, Option<&Tensor>),
///         _: &Context,
///     ) -> Result<Tensor> {
///         let seen = mask.map(|mask| x.f_mul(mask)).transpose()?;
///         Ok(seen.as_ref().unwrap_or(x).f_sum(x.kind())?)
///     }
/// }
///
/// fn total(sum: &MaskedSum, x: &Tensor, cx: &Context) -> Result<Tensor> {
///     Child::new("sum", Some(Region::Fp32), sum).forward_with((x, None), cx)
/// }
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a module: neither `Module` nor `Forward` is implemented for it",
    note = "derive `Module` for a struct of layers, or implement `Visit` and `Module`"
)]
pub trait Forward: Visit {
    /// The tuple of inputs. References are written with `'static`, but may have any lifetime.
    type Input: Arguments;
    /// The type of the module's output.
    type Output: Tensors;

    /// Runs the module.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn forward_with(
        &self,
        inputs: <Self::Input as Arguments>::At<'_>,
        cx: &Context,
    ) -> Result<Self::Output>;

    /// Returns the kind of computation that the module itself does, without its children; see
    /// [`Module::op`].
    fn own_op(&self) -> Op {
        Op::Other
    }

    /// Returns the full name of the module's type; see [`Module::type_name`].
    #[doc(hidden)]
    fn own_type_name(&self) -> &'static str {
        std::any::type_name::<Self>()
    }
}

impl<M: Module + ?Sized> Forward for M {
    type Input = (&'static Tensor,);
    type Output = Tensor;

    fn forward_with(&self, (input,): (&Tensor,), cx: &Context) -> Result<Tensor> {
        self.forward(input, cx)
    }

    fn own_op(&self) -> Op {
        self.op()
    }

    fn own_type_name(&self) -> &'static str {
        self.type_name()
    }
}
