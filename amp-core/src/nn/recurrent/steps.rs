//! Computes recurrent layers step by step and one operation at a time, so that an observer can
//! replace the result of each operation. Without an observer, libtorch's fused operations compute
//! the same results. In 16 bits, libtorch rounds exactly those tensors that the code of this file
//! passes to [`Context::within`] and [`Context::weight`].

use tch::Tensor;

use super::{
    lengths::refused,
    shape::{Cell, Shape},
};
use crate::{
    Result,
    nn::{
        Casts, Context,
        activation::Saturating::{Sigmoid, Tanh},
    },
};

/// A weight, and a bias if the layer has biases.
pub(super) type Factors = (Tensor, Option<Tensor>);

/// Returns the weight and the bias for one call of a layer, or the tensors by which a substitute
/// replaces them. In each call, both are cast to the dtype in which the layer computes.
pub(super) fn factors(weight: &Tensor, bias: Option<&Tensor>, cx: &Context) -> Result<Factors> {
    let used = |tensor: &Tensor| -> Result<Tensor> {
        Ok(cx.weight(tensor, Casts::EachCall)?.shallow_clone())
    };
    Ok((used(weight)?, bias.map(used).transpose()?))
}

/// The weights of one layer in one direction, in the dtype of the input.
struct Weights {
    ih: Factors,
    hh: Factors,
    /// The weight of the projection of the hidden state; `None` without a projection.
    hr: Option<Factors>,
}

impl Weights {
    /// Reads the weights from a list in torch's order.
    fn of(weights: &[Tensor], shape: &Shape, cx: &Context) -> Result<Self> {
        let bias = |at: usize| weights.get(at).filter(|_| shape.bias);
        let [ih, hh, ..] = weights else {
            return Err(refused(format!(
                "{} weights in one direction, but at least 2 are needed",
                weights.len()
            )));
        };
        let hr = weights.last().filter(|_| shape.proj_size > 0);
        Ok(Self {
            ih: factors(ih, bias(2), cx)?,
            hh: factors(hh, bias(3), cx)?,
            hr: hr.map(|hr| factors(hr, None, cx)).transpose()?,
        })
    }
}

/// Prepares a weight and a bias for their use in the next step; see [`Context::next_use`].
fn advance((weight, bias): &mut Factors, cx: &Context) -> Result<()> {
    *weight = cx.next_use(weight)?;
    if let Some(bias) = bias {
        *bias = cx.next_use(bias)?;
    }
    Ok(())
}

/// Computes the product of x with a weight, plus a bias. Passes the result to [`Context::within`]
/// under `name`.
pub(super) fn product(
    name: &str,
    x: &Tensor,
    (weight, bias): &Factors,
    cx: &Context,
) -> Result<Tensor> {
    // x, the weight and the bias have other uses, too. Each gradient is rounded before the
    // gradients of all uses are added.
    let bias = bias.as_ref().map(|bias| cx.next_use(bias)).transpose()?;
    cx.within(name, &cx.next_use(x)?.f_linear(&cx.next_use(weight)?, bias)?)
}

/// Computes the states after a step. If the layer projects its hidden state, the caller does this
/// afterwards. `input` and `hidden` are the products of the input and of the hidden state with
/// their weights. `states` are the states before the step. The operations and their order are those
/// of libtorch on the CPU (aten/src/ATen/native/RNN.cpp).
pub(super) fn next_states(
    cell: Cell,
    [input, hidden]: [&Tensor; 2],
    states: &[Tensor],
    cx: &Context,
) -> Result<Vec<Tensor>> {
    let width = hidden.size()[1] / cell.gates();
    let rows = |product: &Tensor, gate: i64, count: i64| -> Result<Tensor> {
        Ok(product.f_narrow(1, gate * width, count * width)?)
    };
    match (cell, states) {
        (Cell::Lstm, [_, c]) => {
            let sums = cx.within("sums", &hidden.f_add(input)?)?;
            let gates = Sigmoid.run("gates", &rows(&sums, 0, 2)?, cx)?;
            let (i, f) = (rows(&gates, 0, 1)?, rows(&gates, 1, 1)?);
            let g = Tanh.run("candidate", &rows(&sums, 2, 1)?, cx)?;
            let o = Sigmoid.run("output gate", &rows(&sums, 3, 1)?, cx)?;
            let kept = cx.within("kept", &f.f_mul(c)?)?;
            let added = cx.within("added", &i.f_mul(&g)?)?;
            let c = cx.within("cell state", &kept.f_add(&added)?)?;
            let shown = Tanh.run("shown", &cx.next_use(&c)?, cx)?;
            let h = cx.within("hidden state", &o.f_mul(&shown)?)?;
            Ok(vec![h, cx.next_use(&c)?])
        }
        (Cell::Gru, [h]) => {
            let sums = cx.within("sums", &rows(hidden, 0, 2)?.f_add(&rows(input, 0, 2)?)?)?;
            let gates = Sigmoid.run("gates", &sums, cx)?;
            let (r, z) = (rows(&gates, 0, 1)?, rows(&gates, 1, 1)?);
            let reset = cx.within("reset", &rows(hidden, 2, 1)?.f_mul(&r)?)?;
            let sum = cx.within("candidate sum", &rows(input, 2, 1)?.f_add(&reset)?)?;
            let n = Tanh.run("candidate", &sum, cx)?;
            let change = cx.within("change", &h.f_sub(&n)?)?;
            let kept = cx.within("kept", &change.f_mul(&z)?)?;
            Ok(vec![cx.within("hidden state", &kept.f_add(&n)?)?])
        }
        (Cell::Tanh, [_]) => {
            let sum = cx.within("sums", &hidden.f_add(input)?)?;
            Ok(vec![Tanh.run("hidden state", &sum, cx)?])
        }
        (Cell::Relu, [_]) => Ok(vec![cx.within("sums", &hidden.f_add(input)?)?.f_relu()?]),
        _ => Err(refused(format!("the cell cannot start from {} states", states.len()))),
    }
}

/// Computes what libtorch's fused operation computes for several consecutive layers. `weights` are
/// the weights of these layers in torch's order, and `states` are the layers' initial states.
pub(super) fn run<const STATES: usize>(
    shape: &Shape,
    weights: &[Tensor],
    input: &Tensor,
    batch_sizes: Option<&Tensor>,
    states: &[Tensor; STATES],
    cx: &Context,
) -> Result<(Tensor, [Tensor; STATES])> {
    // From here on, x is time-major: the rows of step 0 of all sequences, then those of step 1, and
    // so on.
    let is_transposed = shape.batch_first && batch_sizes.is_none();
    let by_step = match is_transposed {
        true => input.f_transpose(0, 1)?,
        false => input.shallow_clone(),
    };
    let size = by_step.size();
    let (mut x, counts) = match batch_sizes {
        Some(sizes) => (by_step, Vec::<i64>::try_from(sizes)?),
        None => (by_step.f_flatten(0, 1)?, vec![size[1]; size[0] as usize]),
    };
    let (mut last, mut outputs) = ([(); STATES].map(|()| Vec::new()), Vec::new());
    for (row, weights) in (0..).zip(weights.chunks(shape.per_direction() as usize)) {
        let initial = states.iter().map(|state| Ok(state.f_get(row)?));
        let initial = initial.collect::<Result<Vec<_>>>()?;
        let is_reverse = row % shape.directions() == 1;
        let weights = Weights::of(weights, shape, cx)?;
        let (output, ends) = read(shape.cell, weights, (&x, &counts), initial, is_reverse, cx)?;
        outputs.push(output);
        last.iter_mut().zip(ends).for_each(|(last, end)| last.push(end));
        if outputs.len() as i64 == shape.directions() {
            x = Tensor::f_cat(&std::mem::take(&mut outputs), -1)?;
        }
    }
    if batch_sizes.is_none() {
        x = x.f_reshape([size[0], size[1], -1])?;
    }
    if is_transposed {
        x = x.f_transpose(0, 1)?;
    }
    let mut states = [(); STATES].map(|()| Tensor::new());
    for (state, last) in states.iter_mut().zip(&last) {
        *state = Tensor::f_stack(last, 0)?;
    }
    Ok((x, states))
}

/// Runs one layer over the sequences in one direction. `x` is time-major: the rows of the first
/// step, then those of the second step, and so on. `counts` contains for each step the number of
/// sequences that have this step. Returns the hidden states of all steps, in the order of `x`, and
/// the last states of all sequences.
fn read(
    cell: Cell,
    mut weights: Weights,
    (x, counts): (&Tensor, &[i64]),
    initial: Vec<Tensor>,
    is_reverse: bool,
    cx: &Context,
) -> Result<(Tensor, Vec<Tensor>)> {
    let inputs = product("input", x, &weights.ih, cx)?;
    let mut steps: Vec<(Tensor, i64)> =
        inputs.f_split_with_sizes(counts, 0)?.into_iter().zip(counts.iter().copied()).collect();
    if is_reverse {
        steps.reverse();
    }
    let running = steps.first().map_or(0, |(_, count)| *count);
    let initial = with_uses(initial, cx)?;
    let mut states = rows(&initial, 0, running)?;
    let (mut outputs, mut ended) = (Vec::with_capacity(steps.len()), Vec::new());
    for (input, count) in &steps {
        let running = states[0].size()[0];
        if *count < running {
            ended.push(rows(&states, *count, running - count)?);
            states = rows(&states, 0, *count)?;
        }
        if *count > running {
            states = joined(&[states, rows(&initial, running, count - running)?])?;
        }
        let hidden = product("hidden", &states[0], &weights.hh, cx)?;
        let mut next = next_states(cell, [input, &hidden], &states[1..], cx)?;
        advance(&mut weights.hh, cx)?;
        if let Some(hr) = &mut weights.hr {
            next[0] = product("projection", &next[0], hr, cx)?;
            advance(hr, cx)?;
        }
        states = with_uses(next, cx)?;
        outputs.push(states[1].shallow_clone());
    }
    if is_reverse {
        outputs.reverse();
    }
    // The shortest sequences, which are last in the batch, end first. Reversing the saved states
    // restores the batch's order.
    ended.push(states);
    ended.reverse();
    Ok((Tensor::f_cat(&outputs, 0)?, joined(&ended)?.split_off(1)))
}

/// Separates the two uses of the hidden state, `states[0]`: the product with the weight takes
/// `states[0]`, and all other operations take the alias that is inserted at `states[1]`; see
/// [`Context::next_use`].
pub(super) fn with_uses(mut states: Vec<Tensor>, cx: &Context) -> Result<Vec<Tensor>> {
    let again = cx.next_use(&states[0])?;
    states.insert(1, again);
    Ok(states)
}

/// Returns `count` rows of each state, from the row `first` on.
fn rows(states: &[Tensor], first: i64, count: i64) -> Result<Vec<Tensor>> {
    states.iter().map(|state| Ok(state.f_narrow(0, first, count)?)).collect()
}

/// Concatenates the rows of each state from all `parts`.
fn joined(parts: &[Vec<Tensor>]) -> Result<Vec<Tensor>> {
    let states = 0..parts.first().map_or(0, Vec::len);
    let joined = states.map(|at| {
        let rows: Vec<&Tensor> = parts.iter().map(|part| &part[at]).collect();
        Ok(Tensor::f_cat(&rows, 0)?)
    });
    joined.collect()
}
