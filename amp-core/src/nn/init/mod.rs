//! Functions with the names of torch.nn.init, which fill tensors with initial values. For an f32
//! tensor on the CPU, the same seed gives the same values as torch. A tensor of another dtype or on
//! another device gets these values, rounded to its dtype.
//!
//! The functions fill a tensor in place, for example a parameter with a certain name:
//!
//! ```no_run,standalone_crate
//! use amp_core::{
//!     nn::{init, parameters},
//!     prelude::*,
//! };
//!
//! /// Draws the output projections of the blocks as GPT-2 does.
//! fn draw(model: &impl Visit) -> Result<()> {
//!     for parameter in parameters(model) {
//!         if parameter.name.ends_with("c_proj.weight") {
//!             init::normal_(&parameter.tensor, 0.0, 0.02 / 24_f64.sqrt())?;
//!         }
//!     }
//!     Ok(())
//! }
//! # use amp_core::Visit;
//! # fn main() {}
//! ```
//!
//! Attributes of layers accept the initializers of [`Init`]:
//! `linear(64, 10, weight_init = orthogonal)`.

mod remembered;
mod values;

pub use remembered::Remembering;
pub use values::{FanMode, Init, Nonlinearity, calculate_gain};

use tch::Tensor;

use super::{Role, Visit, named_tensors};
use crate::{
    Error, Result,
    error::some_names,
    precision::{dtype_name, is_floating},
};

/// Defines an in-place function for each initializer.
macro_rules! in_place {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $ty:ty),*) = $init:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// When [`Init::tensor`] would fail for this shape.
        pub fn $name(tensor: &Tensor, $($argument: $ty),*) -> Result<()> {
            $init.fill(tensor)
        }
    )*};
}

in_place! {
    /// Fills the tensor with 0.
    zeros_() = Init::Zeros;
    /// Fills the tensor with 1.
    ones_() = Init::Ones;
    /// Sets every element to `val`.
    constant_(val: f64) = Init::Full { value: val };
    /// Fills the tensor with random values from U(a, b).
    uniform_(a: f64, b: f64) = Init::Uniform { low: a, high: b };
    /// Fills the tensor with random values from N(mean, std²).
    normal_(mean: f64, std: f64) = Init::Normal { mean, std };
    /// Fills the tensor with random values from N(mean, std²) that are restricted to [a, b].
    /// torch's defaults of a and b are -2 and 2.
    trunc_normal_(mean: f64, std: f64, a: f64, b: f64) = Init::TruncNormal { mean, std, a, b };
    /// Fills the tensor with random values from U(±gain·√(6 / (fan_in + fan_out))).
    xavier_uniform_(gain: f64) = Init::XavierUniform { gain };
    /// Fills the tensor with random values from N(0, gain²·2 / (fan_in + fan_out)).
    xavier_normal_(gain: f64) = Init::XavierNormal { gain };
    /// Fills the tensor with random values from U(±gain·√(3 / fan)). `nonlinearity` and `a`
    /// determine the gain ([`calculate_gain`]), and `mode` selects the fan.
    kaiming_uniform_(a: f64, mode: FanMode, nonlinearity: Nonlinearity) =
        Init::KaimingUniform { a, mode, nonlinearity };
    /// Fills the tensor with random values from N(0, gain² / fan). `nonlinearity` and `a` determine
    /// the gain ([`calculate_gain`]), and `mode` selects the fan.
    kaiming_normal_(a: f64, mode: FanMode, nonlinearity: Nonlinearity) =
        Init::KaimingNormal { a, mode, nonlinearity };
    /// Fills the tensor with a random (semi-)orthogonal matrix. The size of the first dimension is
    /// the number of rows. The product of the sizes of all other dimensions is the number of
    /// columns.
    orthogonal_(gain: f64) = Init::Orthogonal { gain };
    /// Makes the tensor the identity matrix.
    eye_() = Init::Eye;
}

/// Replaces the initial values of some parameters of a layer. `draws` contains the name of each of
/// these parameters and its initializer.
#[doc(hidden)]
pub fn redrawn<M: Visit>(layer: &str, module: M, draws: &[(&str, Init)]) -> Result<M> {
    let tensors = named_tensors(&module);
    for (name, init) in draws {
        let found =
            tensors.iter().find(|(known, _, role)| known == name && *role == Role::Parameter);
        let Some((_, tensor, _)) = found else {
            let names = some_names(tensors.iter().map(|(known, ..)| known.as_str()));
            return Err(Error::config(format!(
                "`{name}_init`: this {layer} has no parameter `{name}`; it has {}",
                if names.is_empty() { "none" } else { &names }
            )));
        };
        init.fill(tensor)?;
    }
    Ok(module)
}

/// Turns a tensor that the user created into a parameter or buffer of a module. The result has no
/// autograd history. A parameter requires a gradient. A tensor that already is a parameter, for
/// example of another field, stays the same tensor, so that the two fields are tied as in PyTorch.
#[doc(hidden)]
pub fn own_tensor(name: &str, tensor: Tensor, role: Role) -> Result<Tensor> {
    if role == Role::Parameter && tensor.requires_grad() && tensor.f_is_leaf()? {
        return Ok(tensor);
    }
    let tensor = tensor.f_detach()?;
    match role {
        Role::Parameter if !is_floating(tensor.kind()) => Err(Error::config(format!(
            "the parameter `{name}` is {}: only floating-point numbers can be trained, make it a \
             `#[buffer]` or convert it",
            dtype_name(tensor.kind())
        ))),
        Role::Parameter => Ok(tensor.f_set_requires_grad(true)?),
        Role::Buffer => Ok(tensor),
    }
}

/// Creates a parameter of this shape with random values, uniform in `[-bound, bound]`.
pub(super) fn uniform(shape: &[i64], bound: f64) -> Result<Tensor> {
    Ok(values::symmetric(shape, bound)?.f_set_requires_grad(true)?)
}

/// Creates a parameter of this shape with random values from N(0, std²).
pub(super) fn normal(shape: &[i64], std: f64) -> Result<Tensor> {
    Init::Normal { mean: 0.0, std }.tensor(shape, Role::Parameter)
}

/// Creates a parameter `[fan_out, fan_in]` with random values from Xavier's uniform distribution.
pub(super) fn xavier(fan_out: i64, fan_in: i64) -> Result<Tensor> {
    Init::XavierUniform { gain: 1.0 }.tensor(&[fan_out, fan_in], Role::Parameter)
}

/// Creates a parameter in which every element has the same value.
pub(super) fn constant(shape: &[i64], value: f64) -> Result<Tensor> {
    Init::Full { value }.tensor(shape, Role::Parameter)
}

/// Returns a copy of a parameter. The copy requires gradients, too.
pub(super) fn copied(parameter: &Tensor) -> Result<Tensor> {
    Ok(parameter.f_detach()?.f_detach_copy()?.f_set_requires_grad(true)?)
}

/// Creates a buffer in which every element has the same value.
pub(super) fn buffer(shape: &[i64], value: f64) -> Result<Tensor> {
    values::filled(shape, value)
}

/// Returns the bound of `kaiming_uniform_(a = √5)`, which nn.Linear and nn.Conv2d use: 1/√fan_in.
pub(super) fn kaiming_bound(fan_in: i64) -> f64 {
    // The operations have the same order as in torch, so that the result is bit-identical to
    // torch's.
    let gain = (2.0 / (1.0 + 5.0_f64.sqrt().powi(2))).sqrt();
    let std = gain / (fan_in as f64).sqrt();
    3.0_f64.sqrt() * std
}

/// Returns the bound of the bias of nn.Linear and nn.Conv2d: 1/√fan_in.
pub(super) fn bias_bound(fan_in: i64) -> f64 {
    if fan_in > 0 { 1.0 / (fan_in as f64).sqrt() } else { 0.0 }
}
