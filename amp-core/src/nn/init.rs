//! Initial values, drawn as torch.nn draws them.

use tch::{Device, Kind, Tensor};

use crate::{Result, random};

/// A parameter of this shape, uniform in `[-bound, bound]`.
pub(super) fn uniform(shape: &[i64], bound: f64) -> Result<Tensor> {
    let _place = random::place();
    let mut tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    let _ = tensor.f_uniform_(-bound, bound)?;
    Ok(tensor.f_set_requires_grad(true)?)
}

/// A parameter from a normal distribution around 0.
pub(super) fn normal(shape: &[i64], std: f64) -> Result<Tensor> {
    let _place = random::place();
    let mut tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    let _ = tensor.f_normal_(0.0, std)?;
    Ok(tensor.f_set_requires_grad(true)?)
}

/// A parameter filled with one value.
pub(super) fn constant(shape: &[i64], value: f64) -> Result<Tensor> {
    Ok(buffer(shape, value)?.f_set_requires_grad(true)?)
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

/// The bound of a bias of nn.Linear and nn.Conv2d: 1/√fan_in.
pub(super) fn bias_bound(fan_in: i64) -> f64 {
    if fan_in > 0 { 1.0 / (fan_in as f64).sqrt() } else { 0.0 }
}
