//! Layers of recurrent cells that read sequences forwards, or forwards and backwards.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::{
    lengths::{Lengths, refused},
    shape::{Cell, Shape},
    steps,
};
use crate::{
    Result,
    nn::{Context, Dropout, Module, Role, Visitor, init},
    precision::{AutocastGuard, autocast_state, is_floating},
};

/// Returns the autocast dtype. Returns `None` if autocast is off, or if autocast does not cast
/// tensors of the dtypes of `input` and `weight`.
pub(super) fn autocast_kind(input: &Tensor, weight: &Tensor) -> Result<Option<Kind>> {
    let state = autocast_state(input.device())?;
    let eligible = |kind| is_floating(kind) && kind != Kind::Double;
    let casts = state.enabled && eligible(input.kind()) && eligible(weight.kind());
    Ok(state.dtype.filter(|_| casts))
}

/// The layers of a recurrent network, with their weights.
#[derive(Debug)]
pub(super) struct Stack {
    weights: Vec<Tensor>,
    dropout: Dropout,
    shape: Shape,
}

impl Stack {
    pub(super) fn new(shape: Shape) -> Result<Self> {
        shape.check()?;
        let bound = 1.0 / (shape.hidden_size as f64).sqrt();
        let weights = shape.weights();
        Ok(Self {
            weights: weights
                .iter()
                .map(|(_, size)| init::uniform(size, bound))
                .collect::<Result<_>>()?,
            dropout: Dropout::new(shape.dropout)?,
            shape,
        })
    }

    pub(super) fn visit(&self, visitor: &mut dyn Visitor) {
        for ((name, _), weight) in self.shape.weights().iter().zip(&self.weights) {
            visitor.tensor(name, weight, Role::Parameter);
        }
    }

    /// Computes the output and the last states. The number of states depends on the cell.
    pub(super) fn run<const STATES: usize>(
        &self,
        input: &Tensor,
        initial: Option<[&Tensor; STATES]>,
        lengths: Option<&Tensor>,
        cx: &Context,
    ) -> Result<(Tensor, [Tensor; STATES])> {
        if cx.cache().is_some() {
            let text = "a KV cache does not store the layer's state: run the model without a cache";
            return Err(refused(text.to_owned()));
        }
        let batch_first = self.shape.batch_first;
        let (steps, batch) = self.sizes(input)?;
        let device = input.device();
        let autocast = autocast_kind(input, &self.weights[0])?;
        let kind = autocast.unwrap_or(input.kind());
        // Autocast is switched off, because this function itself casts all tensors. On CUDA,
        // libtorch's autocast of recurrent layers always uses f16, and on the CPU it casts to bf16
        // even if oneDNN has no kernel for bf16.
        let _off = autocast.map(|_| AutocastGuard::off(device)).transpose()?;
        let mut x = input.f_to_kind(kind)?;
        let mut states = self.initial(initial, batch, (kind, device))?;
        let batch_dim = if batch_first { 0 } else { 1 };
        let Some(lengths) = lengths else {
            let (output, last) = self.layers(&x, None, &states, cx)?;
            return Ok((output, last));
        };
        let lengths = Lengths::of(lengths, batch, steps, device)?;
        x = lengths.sort(&x, batch_dim)?;
        for state in &mut states {
            *state = lengths.sort(state, 1)?;
        }
        let (data, batch_sizes) = lengths.pack(&x, batch_first)?;
        let (data, mut last) = self.layers(&data, Some(&batch_sizes), &states, cx)?;
        let output = Lengths::pad(&data, &batch_sizes, batch_first, steps)?;
        for state in &mut last {
            *state = lengths.unsort(state, 1)?;
        }
        Ok((lengths.unsort(&output, batch_dim)?, last))
    }

    /// Returns the number of steps and the number of sequences.
    fn sizes(&self, input: &Tensor) -> Result<(i64, i64)> {
        let Shape { batch_first, input_size, .. } = self.shape;
        let size = input.size();
        match (size.as_slice(), batch_first) {
            (&[batch, steps, own], true) if own == input_size && steps > 0 => Ok((steps, batch)),
            (&[steps, batch, own], false) if own == input_size && steps > 0 => Ok((steps, batch)),
            _ => Err(refused(format!(
                "the input is {size:?}, but must be [{}, {input_size}]",
                if batch_first { "batch, steps" } else { "steps, batch" }
            ))),
        }
    }

    /// Returns the states `given` by the caller or, without them, zeros.
    fn initial<const STATES: usize>(
        &self,
        given: Option<[&Tensor; STATES]>,
        batch: i64,
        (kind, device): (Kind, Device),
    ) -> Result<[Tensor; STATES]> {
        let Shape { hidden_size, num_layers, .. } = self.shape;
        let rows = num_layers * self.shape.directions();
        let mut states = [(); STATES].map(|()| Tensor::new());
        for (at, state) in states.iter_mut().enumerate() {
            let width = if at == 0 { self.shape.output_size() } else { hidden_size };
            let size = [rows, batch, width];
            *state = match given.map(|given| given[at]) {
                None => Tensor::f_zeros(size, (kind, device))?,
                Some(given) if given.size() == size => given.f_to_kind(kind)?.f_contiguous()?,
                Some(given) => {
                    return Err(refused(format!(
                        "the initial {} is {:?}, but must be {size:?}",
                        ["h", "c"][at],
                        given.size()
                    )));
                }
            };
        }
        Ok(states)
    }

    /// Runs the layers on a padded or packed batch. This crate computes the dropout between the
    /// layers itself. cuDNN's dropout does not use libtorch's generator, so a resumed run could not
    /// continue with the same random numbers.
    fn layers<const STATES: usize>(
        &self,
        input: &Tensor,
        batch_sizes: Option<&Tensor>,
        states: &[Tensor; STATES],
        cx: &Context,
    ) -> Result<(Tensor, [Tensor; STATES])> {
        let Shape { num_layers, .. } = self.shape;
        if num_layers == 1 || self.dropout.active(cx) == 0.0 {
            return self.cells(0..num_layers, input, batch_sizes, states, cx);
        }
        let rows = self.shape.directions();
        let mut x = input.shallow_clone();
        let mut last = [(); STATES].map(|()| Vec::new());
        for layer in 0..num_layers {
            if layer > 0 {
                x = self.dropout.forward(&x, cx)?;
            }
            let mut own = [(); STATES].map(|()| Tensor::new());
            for (own, state) in own.iter_mut().zip(states) {
                *own = state.f_narrow(0, layer * rows, rows)?;
            }
            let (output, states) = self.cells(layer..layer + 1, &x, batch_sizes, &own, cx)?;
            x = output;
            last.iter_mut().zip(states).for_each(|(last, state)| last.push(state));
        }
        let mut states = [(); STATES].map(|()| Tensor::new());
        for (state, last) in states.iter_mut().zip(&last) {
            *state = Tensor::f_cat(last, 0)?;
        }
        Ok((x, states))
    }

    /// Runs several consecutive layers in one call of libtorch. If an observer replaces the results
    /// of single operations, runs the layers step by step.
    fn cells<const STATES: usize>(
        &self,
        layers: Range<i64>,
        input: &Tensor,
        batch_sizes: Option<&Tensor>,
        states: &[Tensor; STATES],
        cx: &Context,
    ) -> Result<(Tensor, [Tensor; STATES])> {
        let Shape { cell, bias, batch_first, bidirectional, .. } = self.shape;
        let weights = self.ready(layers.clone(), input)?;
        if cx.has_substitutes() {
            return steps::run(&self.shape, &weights, input, batch_sizes, states, cx);
        }
        let (count, train, h) = (layers.end - layers.start, cx.is_training(), &states[0]);
        macro_rules! run {
            ($padded:ident, $packed:ident, $states:expr) => {
                match batch_sizes {
                    None => input.$padded(
                        $states,
                        &weights,
                        bias,
                        count,
                        0.0,
                        train,
                        bidirectional,
                        batch_first,
                    )?,
                    Some(sizes) => Tensor::$packed(
                        input,
                        sizes,
                        $states,
                        &weights,
                        bias,
                        count,
                        0.0,
                        train,
                        bidirectional,
                    )?,
                }
            };
        }
        let (output, last) = match cell {
            Cell::Lstm => {
                let (output, h, c) = run!(f_lstm, f_lstm_data, states);
                (output, vec![h, c])
            }
            Cell::Gru => {
                let (output, h) = run!(f_gru, f_gru_data, h);
                (output, vec![h])
            }
            Cell::Tanh => {
                let (output, h) = run!(f_rnn_tanh, f_rnn_tanh_data, h);
                (output, vec![h])
            }
            Cell::Relu => {
                let (output, h) = run!(f_rnn_relu, f_rnn_relu_data, h);
                (output, vec![h])
            }
        };
        let last = <[Tensor; STATES]>::try_from(last)
            .map_err(|last| refused(format!("the cell has {} states, not {STATES}", last.len())))?;
        Ok((output, last))
    }

    /// Returns the layers' weights in the input's dtype. For cuDNN, also copies them into one block
    /// of memory. Otherwise cuDNN would copy them at each call, and print a warning.
    fn ready(&self, layers: Range<i64>, input: &Tensor) -> Result<Vec<Tensor>> {
        let (shape, per_layer) = (self.shape, self.shape.directions() * self.shape.per_direction());
        let places = layers.start * per_layer..layers.end * per_layer;
        let places = places.start as usize..places.end as usize;
        let (kind, device) = (input.kind(), input.device());
        let for_cudnn = input.f_cudnn_is_acceptable()?;
        let ready = |weight: &Tensor| match for_cudnn {
            true => weight.f_to_device_(device, kind, false, true),
            false => weight.f_to_kind(kind),
        };
        let weights: Vec<Tensor> =
            self.weights[places].iter().map(ready).collect::<std::result::Result<_, _>>()?;
        if for_cudnn {
            let _chunk = tch::no_grad(|| {
                Tensor::f_internal_cudnn_rnn_flatten_weight(
                    &weights,
                    shape.per_direction(),
                    shape.input_of(layers.start),
                    shape.cell.mode(),
                    shape.hidden_size,
                    shape.proj_size,
                    layers.end - layers.start,
                    shape.batch_first,
                    shape.bidirectional,
                )
            })?;
        }
        Ok(weights)
    }
}
