//! Helpers that run a forward and a backward pass through layers. The layers run as fused kernels
//! or one by one.

use std::{collections::BTreeMap, rc::Rc};

use amp_core::{
    Error, Module, Result,
    nn::{Call, Context, Dropout, Probe, Visit, Visitor, parameters, place},
    precision::{Policy, Precision},
    tch::{self, Device, Kind, Tensor},
};

use super::{bits::wide, device};

/// A layer that returns libtorch's out-of-memory error if a batch has more examples than the given
/// number.
#[derive(Debug)]
pub(crate) struct Room(pub(crate) i64);

impl Visit for Room {
    fn visit(&self, _: &mut dyn Visitor) {}
}

impl Module for Room {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        match input.size()[0] > self.0 {
            true => Err(Error::Torch("CUDA out of memory. Tried to allocate 1.00 GiB".into())),
            false => Ok(input.shallow_clone()),
        }
    }
}

/// Returns a bound for relative errors in the dtype. For 16-bit dtypes, it is half a unit in the
/// last place, the error of one rounding. For f32 and f64, it is larger, and allows for the
/// rounding errors of sums of some hundred terms.
pub(crate) fn rounding(kind: Kind) -> f64 {
    match kind {
        Kind::Half => 2.0_f64.powi(-11),
        Kind::BFloat16 => 2.0_f64.powi(-8),
        Kind::Float => 1e-5,
        _ => 1e-13,
    }
}

/// Generates normally distributed numbers with mean `shift` and standard deviation `scale`.
pub(crate) fn draw(shape: &[i64], kind: Kind, scale: f64, shift: f64) -> Tensor {
    (Tensor::randn(shape, (Kind::Double, Device::Cpu)) * scale + shift).to_kind(kind)
}

/// Returns the factors by which dropout multiplies the elements of a tensor of the given shape, if
/// the random generator was seeded with `seed`.
pub(crate) fn factors(p: f64, shape: [i64; 2], seed: i64) -> Result<Tensor> {
    let cx = Context::new(Policy::new(Precision::F64True, device()), true);
    tch::manual_seed(seed);
    Ok(wide(&Dropout::new(p)?.forward(&Tensor::ones(shape, (Kind::Double, device())), &cx)?))
}

/// Moves the layers to the device and the dtypes of the policy. Fills their parameters with
/// normally distributed numbers with mean `shift` and standard deviation `scale`. Returns the
/// parameters.
pub(crate) fn fill(
    layers: &impl Module,
    policy: Policy,
    scale: f64,
    shift: f64,
) -> Result<Vec<Tensor>> {
    place(layers, policy, &BTreeMap::new())?;
    let tensors: Vec<Tensor> = parameters(layers).into_iter().map(|own| own.tensor).collect();
    for tensor in &tensors {
        let value = draw(&tensor.size(), tensor.kind(), scale, shift).to(policy.device);
        tch::no_grad(|| tensor.shallow_clone().copy_(&value));
    }
    Ok(tensors)
}

/// The results of a forward and a backward pass.
pub(crate) struct Seen {
    pub(crate) output: Tensor,
    pub(crate) input_grad: Tensor,
    /// The gradients of the parameters, in order.
    pub(crate) grads: Vec<Tensor>,
}

impl Seen {
    /// Returns the output and the gradients, each with its name.
    pub(crate) fn named(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let parts = [("output", &self.output), ("input", &self.input_grad)];
        let parts = parts.into_iter().map(|(name, tensor)| (name.to_owned(), tensor));
        let grads = self.grads.iter().enumerate();
        parts.chain(grads.map(|(at, grad)| (format!("parameter {at}"), grad)))
    }
}

/// Runs a forward pass in training mode with a fixed seed, and a backward pass from the gradient
/// `incoming`. If `one_by_one` is true, a probe reads each tensor, so that the layers are not
/// fused.
pub(crate) fn pass(
    layers: &impl Module,
    policy: Policy,
    [input, incoming]: [&Tensor; 2],
    one_by_one: bool,
) -> Result<Seen> {
    struct Watcher;
    impl Probe for Watcher {
        fn ran(&self, _: &Call<'_>) {}
    }

    let own = parameters(layers);
    own.iter().for_each(|parameter| parameter.tensor.shallow_clone().zero_grad());
    let given = input.to(policy.device).detach().set_requires_grad(true);
    tch::manual_seed(5);
    let output = {
        let _region = policy.autocast()?;
        let cx = Context::new(policy, true);
        let cx = if one_by_one { cx.with_probe(Rc::new(Watcher)) } else { cx };
        layers.forward(&given, &cx)?
    };
    (&output * incoming.to(policy.device)).sum(Kind::Double).backward();
    let grads = own.iter().map(|parameter| parameter.tensor.grad().copy()).collect();
    Ok(Seen { output, input_grad: given.grad(), grads })
}
