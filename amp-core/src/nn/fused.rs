//! Fuses consecutive layers in training on CUDA: a linear layer with a following ReLU or GELU, a
//! batch norm with a following ReLU, or a layer norm with a following GELU. A dropout that follows
//! one of these groups is fused, too.

use tch::Tensor;

use super::{BatchNorm, Context, Dropout, LayerNorm, Linear, Module, planted};
use crate::{Result, ffi::FollowingOp};

/// The role that a layer can have in a group of fused layers.
#[derive(Debug, Clone, Copy)]
pub enum Fusable<'a> {
    /// A linear layer, always the first layer of a group. ReLU or GELU may follow, and after that
    /// dropout.
    Linear(&'a Linear),
    /// A batch norm, always the first layer of a group. ReLU may follow, and after that dropout.
    BatchNorm(&'a BatchNorm),
    /// A layer norm, always the first layer of a group. GELU may follow, and after that dropout.
    LayerNorm(&'a LayerNorm),
    /// max(x, 0).
    Relu,
    /// x·Φ(x).
    Gelu,
    /// GELU, approximated by means of tanh.
    GeluTanh,
    /// Dropout, which is always the last layer of a group.
    Dropout(&'a Dropout),
    /// Any other layer, which is never fused.
    Other,
}

/// Runs the first of `layers` fused with the layers after it. `place` is the index of the first
/// layer in its container. Returns the number of layers that ran and their output. Returns `None`
/// if the first layer must run alone: if no layer follows that can be fused with it, a probe reads
/// the tensors between layers, a precision override names one of the layers, or no kernel supports
/// the input.
pub(super) fn run<M: Module>(
    layers: &[M],
    place: usize,
    input: &Tensor,
    cx: &Context,
) -> Result<Option<(usize, Tensor)>> {
    if !(input.device().is_cuda() || planted::fuses_on_host()) {
        return Ok(None);
    }
    let Some(first) = layers.first().map(Module::fusable) else { return Ok(None) };
    let activates = |layer: &Fusable<'_>| {
        matches!(
            (first, layer),
            (Fusable::Linear(_) | Fusable::BatchNorm(_), Fusable::Relu)
                | (Fusable::LayerNorm(_), Fusable::Gelu)
                | (Fusable::Linear(_), Fusable::Gelu | Fusable::GeluTanh)
        )
    };
    let mut behind = layers[1..].iter().map(Module::fusable).peekable();
    let activation = behind.next_if(activates);
    let active = activation.is_some();
    let linear_with = match (first, activation) {
        (Fusable::Linear(_), Some(Fusable::Relu)) => Some(FollowingOp::Relu),
        (Fusable::Linear(_), Some(Fusable::Gelu)) => Some(FollowingOp::Gelu),
        (Fusable::Linear(_), Some(Fusable::GeluTanh)) => Some(FollowingOp::GeluTanh),
        _ => None,
    };
    let dropout = match behind.peek() {
        Some(Fusable::Dropout(dropout)) => Some(dropout.active(cx)),
        _ => None,
    };
    let count = 1 + usize::from(active) + usize::from(dropout.is_some());
    if count == 1 || !cx.is_plain(place..place + count) {
        return Ok(None);
    }
    let p = dropout.unwrap_or(0.0);
    let layers = &layers[..count];
    let run = |input: &Tensor, cx: &Context| match first {
        Fusable::Linear(_) if linear_with.is_none() => Ok(None),
        Fusable::Linear(_) | Fusable::BatchNorm(_) | Fusable::LayerNorm(_)
            if !input.device().is_cuda() =>
        {
            one_by_one(layers, input, cx).map(Some)
        }
        Fusable::Linear(linear) => match linear_with {
            Some(behind) => linear.forward_activated(input, cx, behind, p),
            None => Ok(None),
        },
        Fusable::BatchNorm(norm) => norm.forward_with(input, cx, active, p),
        Fusable::LayerNorm(norm) => norm.forward_with(input, cx, active, p),
        _ => Ok(None),
    };
    let output = cx.call_fused(layers, place, input, run)?;
    Ok(output.map(|output| (count, output)))
}

/// Runs the layers of a group one by one. On a CPU, which has no kernels for fused layers, the
/// self-test uses this function as the fused operation.
fn one_by_one<M: Module>(layers: &[M], input: &Tensor, cx: &Context) -> Result<Tensor> {
    layers.iter().try_fold(input.shallow_clone(), |x, layer| layer.forward(&x, cx))
}
