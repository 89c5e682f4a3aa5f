//! Initial values, drawn as torch.nn draws them.

use tch::{Device, Kind, TchError, Tensor};

use super::Role;
use crate::{
    Error, Result,
    precision::{dtype_name, is_floating},
    random,
};

/// A tensor's first values, drawn in f32 on the CPU from libtorch's generator. What a field with
/// `#[parameter(shape = [64, 10], init = normal(0.0, 0.02))]` is built with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// 0.
    Zeros,
    /// 1.
    Ones,
    /// One value.
    Full {
        /// It.
        value: f64,
    },
    /// U(low, high).
    Uniform {
        /// The least value.
        low: f64,
        /// The bound that no value reaches.
        high: f64,
    },
    /// N(mean, std²).
    Normal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        std: f64,
    },
    /// U(±1/√fan_in), as weights of nn.Linear.
    KaimingUniform {
        /// How many inputs one output has.
        fan_in: i64,
    },
}

impl Init {
    /// A tensor of this shape; one that is trained requires a gradient.
    ///
    /// # Errors
    /// When a size is negative, `high` is below `low`, or `std` or `fan_in` is negative.
    pub fn tensor(self, shape: &[i64], role: Role) -> Result<Tensor> {
        let tensor = match self {
            Self::Zeros => constant(shape, 0.0),
            Self::Ones => constant(shape, 1.0),
            Self::Full { value } => constant(shape, value),
            Self::Uniform { low, high } => drawn(shape, |tensor| tensor.f_uniform_(low, high)),
            Self::Normal { mean, std } => drawn(shape, |tensor| tensor.f_normal_(mean, std)),
            Self::KaimingUniform { fan_in } if fan_in < 1 => {
                Err(Error::config(format!("kaiming_uniform({fan_in}): fan_in must be positive")))
            }
            Self::KaimingUniform { fan_in } => uniform(shape, kaiming_bound(fan_in)),
        }?;
        match role {
            Role::Parameter => Ok(tensor),
            Role::Buffer => Ok(tensor.f_set_requires_grad(false)?),
        }
    }
}

/// A tensor of the user's as that of a module: it requires a gradient where it is trained, and has
/// no history.
#[doc(hidden)]
pub fn own_tensor(name: &str, tensor: Tensor, role: Role) -> Result<Tensor> {
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

/// A parameter of this shape, uniform in `[-bound, bound]`.
pub(super) fn uniform(shape: &[i64], bound: f64) -> Result<Tensor> {
    drawn(shape, |tensor| tensor.f_uniform_(-bound, bound))
}

/// A parameter from a normal distribution around 0.
pub(super) fn normal(shape: &[i64], std: f64) -> Result<Tensor> {
    drawn(shape, |tensor| tensor.f_normal_(0.0, std))
}

fn drawn(
    shape: &[i64],
    draw: impl FnOnce(&mut Tensor) -> Result<Tensor, TchError>,
) -> Result<Tensor> {
    let _place = random::place();
    let mut tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    let _ = draw(&mut tensor)?;
    Ok(tensor.f_set_requires_grad(true)?)
}

/// A parameter filled with one value.
pub(super) fn constant(shape: &[i64], value: f64) -> Result<Tensor> {
    Ok(buffer(shape, value)?.f_set_requires_grad(true)?)
}

/// A parameter of the same values.
pub(super) fn copied(parameter: &Tensor) -> Result<Tensor> {
    Ok(parameter.f_detach()?.f_detach_copy()?.f_set_requires_grad(true)?)
}

/// A buffer filled with one value.
pub(super) fn buffer(shape: &[i64], value: f64) -> Result<Tensor> {
    Ok(Tensor::f_full(shape, value, (Kind::Float, Device::Cpu))?)
}

/// The bound of `kaiming_uniform_(a = √5)`, what nn.Linear and nn.Conv2d use: 1/√fan_in.
pub(super) fn kaiming_bound(fan_in: i64) -> f64 {
    // In torch's order of operations, so that the bound has the same last bit.
    let gain = (2.0 / (1.0 + 5.0_f64.sqrt().powi(2))).sqrt();
    let std = gain / (fan_in as f64).sqrt();
    3.0_f64.sqrt() * std
}

/// A parameter `[fan_out, fan_in]` from Xavier's uniform distribution (nn.init.xavier_uniform_).
pub(super) fn xavier(fan_out: i64, fan_in: i64) -> Result<Tensor> {
    // In torch's order of operations.
    let std = (2.0 / (fan_in + fan_out) as f64).sqrt();
    uniform(&[fan_out, fan_in], 3.0_f64.sqrt() * std)
}

/// The bound of a bias of nn.Linear and nn.Conv2d: 1/√fan_in.
pub(super) fn bias_bound(fan_in: i64) -> f64 {
    if fan_in > 0 { 1.0 / (fan_in as f64).sqrt() } else { 0.0 }
}
