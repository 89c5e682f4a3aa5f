//! Layers that stand one behind the other and run as one kernel on CUDA: batch normalisation, then
//! ReLU, dropout or both.

use tch::Tensor;

use super::{BatchNorm, Context, Dropout, Module};
use crate::Result;

/// What a layer is to those that run some layers in one.
#[derive(Debug, Clone, Copy)]
pub enum Fusable<'a> {
    /// May have the others behind it.
    BatchNorm(&'a BatchNorm),
    /// max(x, 0).
    Relu,
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
    let Some(Fusable::BatchNorm(norm)) = layers.first().map(Module::fusable) else {
        return Ok(None);
    };
    let mut behind = layers[1..].iter().map(Module::fusable).peekable();
    let relu = behind.next_if(|layer| matches!(layer, Fusable::Relu)).is_some();
    let p = match behind.peek() {
        Some(Fusable::Dropout(dropout)) => Some(dropout.active(cx)),
        _ => None,
    };
    let count = 1 + usize::from(relu) + usize::from(p.is_some());
    if count == 1 || !input.device().is_cuda() || !cx.is_plain(place..place + count) {
        return Ok(None);
    }
    let run = || norm.forward_with(input, cx, relu, p.unwrap_or(0.0));
    let output = cx.call_fused(&layers[..count], place, run)?;
    Ok(output.map(|output| (count, output)))
}
