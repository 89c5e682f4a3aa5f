//! Lets the loss compute the output layer of a model in chunks of rows, so that not all logits are
//! in memory at once. Before the forward pass, the cross entropy requests the model's output layer.
//! The derive macro marks the call of this layer in the forward pass. If chunks save time or
//! memory, the marked layer does not run, but passes its input and its weights to the loss.

use std::{any::TypeId, cell::RefCell};

use tch::Tensor;

use super::linear;
use crate::{
    Result, ffi,
    loss::{CrossEntropy, Loss, pays_in_chunks},
    metric::{Metric, MetricState},
};

thread_local! {
    static STATE: RefCell<State> = const { RefCell::new(State::Unrequested) };
}

/// What is known about the output layer of the model that runs on this thread.
#[derive(Debug)]
enum State {
    Unrequested,
    /// A loss has requested the output layer of this model, so that the layer need not run.
    Requested(Model),
    /// [`linear`] is being called as the output layer of this model.
    Called(Model),
    /// The output layer did not run. The loss computes it from these tensors.
    Deferred(Layer),
}

/// Identifies a model by its address and type. The address is not enough, because a struct and its
/// first field may have the same address.
type Model = (usize, &'static str);

fn identity<M: ?Sized>(model: &M) -> Model {
    (std::ptr::from_ref(model).cast::<()>() as usize, std::any::type_name::<M>())
}

/// The weights of a linear layer, and its input.
#[derive(Debug)]
struct Layer {
    input: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
}

/// A guard that restores the earlier state when it is dropped, also after an error.
struct Restored(State);

impl Restored {
    fn set(state: State) -> Self {
        Self(STATE.replace(state))
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let outer = std::mem::replace(&mut self.0, State::Unrequested);
        STATE.set(outer);
    }
}

/// Computes the loss of a model's output. If the output layer is linear and its outputs are so
/// large that they should not all be in memory at once, the loss computes the layer in chunks of
/// rows.
///
/// # Errors
/// When `forward` or the loss fails.
#[doc(hidden)]
pub fn loss_of_output<M: ?Sized>(
    model: &M,
    loss: &CrossEntropy,
    forward: impl FnOnce() -> Result<Tensor>,
    target: &Tensor,
) -> Result<Tensor> {
    let (loss, []) = loss_and_metrics_of_output(model, loss, [], forward, target)?;
    Ok(loss)
}

/// Computes the loss as [`loss_of_output`] does, and updates each metric with the model's output
/// and the target. Returns the loss and the states of the metrics. If the loss computes the output
/// layer in chunks, each metric reads the logits of one chunk at a time, and the metric's states
/// for all chunks are merged.
///
/// # Errors
/// When `forward`, the loss or a metric fails.
#[doc(hidden)]
pub fn loss_and_metrics_of_output<M: ?Sized, const N: usize>(
    model: &M,
    loss: &CrossEntropy,
    metrics: [&dyn Metric; N],
    forward: impl FnOnce() -> Result<Tensor>,
    target: &Tensor,
) -> Result<(Tensor, [MetricState; N])> {
    let whole = |output: &Tensor| -> Result<(Tensor, [MetricState; N])> {
        // The output layer is linear, so the classes are in the last dimension.
        let (output, target) = loss.class_dim_of_linear().resolve(output, target)?;
        let loss = loss.compute(&output, &target)?;
        let mut states = metrics.map(|_| MetricState::default());
        let output = output.f_detach()?;
        for (state, metric) in states.iter_mut().zip(metrics) {
            *state = tch::no_grad(|| metric.update(&output, &target))?;
        }
        Ok((loss, states))
    };
    if loss.weight.is_some() {
        return whole(&forward()?);
    }
    let requested = Restored::set(State::Requested(identity(model)));
    let output = forward()?;
    let state = STATE.replace(State::Unrequested);
    drop(requested);
    let State::Deferred(Layer { input, weight, bias }) = state else { return whole(&output) };
    let mut states: [Option<MetricState>; N] = metrics.map(|_| None);
    let targets = target.f_reshape([-1])?;
    let mut read = |logits: &Tensor, first: i64| -> Result<()> {
        let targets = targets.f_narrow(0, first, logits.size()[0])?;
        for (state, metric) in states.iter_mut().zip(metrics) {
            let part = tch::no_grad(|| metric.update(logits, &targets))?;
            match state {
                Some(state) => state.merge(&part)?,
                None => *state = Some(part),
            }
        }
        Ok(())
    };
    let each: Option<&mut ffi::EachChunk<'_>> = if N == 0 { None } else { Some(&mut read) };
    let bias = bias.as_ref();
    match loss.in_chunks(&input, &weight, bias, target, None, each)? {
        Some(loss) => Ok((loss, states.map(Option::unwrap_or_default))),
        None => whole(&linear(&input, &weight, bias)?),
    }
}

/// Returns whether the loss of this model has requested the model's output layer.
pub(super) fn is_requested<M: ?Sized>(model: &M) -> bool {
    STATE.with_borrow(|state| matches!(state, State::Requested(of) if *of == identity(model)))
}

/// Passes the tensors of a requested output layer to the loss if that saves time or memory. If so,
/// returns the dtype of the layer's output, and the layer must return an undefined tensor.
/// Otherwise returns `None`, and the layer must run.
pub(super) fn defer(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Option<tch::Kind>> {
    let kind = pays_in_chunks(input, weight, bias)?;
    if kind.is_some() {
        let handle = Tensor::shallow_clone;
        STATE.set(State::Deferred(Layer {
            input: handle(input),
            weight: handle(weight),
            bias: bias.map(handle),
        }));
    }
    Ok(kind)
}

/// A guard. While it exists, the next call of [`linear`] counts as the model's output layer.
#[doc(hidden)]
#[derive(Debug)]
pub struct AtOutput(Option<Model>);

impl AtOutput {
    /// Returns a guard for a call of `function` in `model`. The guard has an effect only if
    /// `function` is [`linear`] and the loss has requested the output layer of `model`.
    pub(super) fn begin<M: ?Sized, F: 'static>(model: &M, _: &F) -> Self {
        if TypeId::of::<F>() != type_of(&linear) || !is_requested(model) {
            return Self(None);
        }
        let model = identity(model);
        STATE.set(State::Called(model));
        Self(Some(model))
    }

    /// Returns a guard that has no effect.
    pub(super) fn none() -> Self {
        Self(None)
    }
}

impl Drop for AtOutput {
    fn drop(&mut self) {
        // If `linear` was not called while the guard existed, the state is still `Called`. Restores
        // the state from before the guard.
        if let Some(model) = self.0
            && STATE.with_borrow(|state| matches!(state, State::Called(_)))
        {
            STATE.set(State::Requested(model));
        }
    }
}

fn type_of<F: 'static>(_: &F) -> TypeId {
    TypeId::of::<F>()
}

/// Passes the tensors of a call of [`linear`] to the loss if the call is the model's output layer
/// and this saves time or memory. Returns whether it did so, in which case [`linear`] must compute
/// nothing. If the output layer calls [`linear`] several times, only the first call can be passed.
pub(super) fn is_deferred(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<bool> {
    let model = STATE.with_borrow(|state| match state {
        State::Called(model) => Some(*model),
        _ => None,
    });
    let Some(model) = model else { return Ok(false) };
    STATE.set(State::Requested(model));
    Ok(defer(input, weight, bias)?.is_some())
}
