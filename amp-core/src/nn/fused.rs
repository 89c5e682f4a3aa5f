//! Layers that stand one behind the other and run together on CUDA while training: a linear layer or a
//! batch normalisation with ReLU, a layer normalisation with GELU, and dropout behind each.

use tch::Tensor;

use super::{BatchNorm, Context, Dropout, LayerNorm, Linear, Module, planted};
use crate::Result;

/// What a layer is to those that run some layers in one.
#[derive(Debug, Clone, Copy)]
pub enum Fusable<'a> {
    /// May have ReLU behind it, and then dropout.
    Linear(&'a Linear),
    /// May have ReLU and dropout behind it.
    BatchNorm(&'a BatchNorm),
    /// May have GELU and dropout behind it.
    LayerNorm(&'a LayerNorm),
    /// max(x, 0).
    Relu,
    /// x·Φ(x).
    Gelu,
    /// The last of them.
    Dropout(&'a Dropout),
    /// Runs by itself.
    Other,
}

/// Runs the first of `layers`, which begin at `place` of their container, with those behind it that
/// go along: how many, and the output. `None` where the first runs by itself: where somebody looks
/// at the tensors of each, one of them has a region of its own, or the kernels are not for this input.
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
        )
    };
    let mut behind = layers[1..].iter().map(Module::fusable).peekable();
    let active = behind.next_if(activates).is_some();
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
        Fusable::Other | Fusable::Relu | Fusable::Gelu | Fusable::Dropout(_) => Ok(None),
        Fusable::Linear(_) if !active => Ok(None),
        _ if !input.device().is_cuda() => one_by_one(layers, input, cx).map(Some),
        Fusable::Linear(linear) => linear.forward_relu(input, cx, p),
        Fusable::BatchNorm(norm) => norm.forward_with(input, cx, active, p),
        Fusable::LayerNorm(norm) => norm.forward_with(input, cx, active, p),
    };
    let output = cx.call_fused(layers, place, input, run)?;
    Ok(output.map(|output| (count, output)))
}

/// In place of kernels that a CPU does not have.
fn one_by_one<M: Module>(layers: &[M], input: &Tensor, cx: &Context) -> Result<Tensor> {
    layers.iter().try_fold(input.shallow_clone(), |x, layer| layer.forward(&x, cx))
}
