//! Cells, which compute a single step of a recurrent network.

use tch::Tensor;

use super::{
    RnnNonlinearity,
    lengths::refused,
    shape::{Cell, Shape},
    stack::autocast_kind,
    steps::{factors, next_states, product, with_uses},
};
use crate::{
    Result,
    nn::{Context, Forward, Op, Role, Visit, Visitor, init},
    precision::AutocastGuard,
};

/// The options of an [`LstmCell`]. The defaults are those of nn.LSTMCell.
#[derive(Debug, Clone, Copy)]
pub struct LstmCellConfig {
    /// The number of elements of the input.
    pub input_size: i64,
    /// The number of elements of the hidden state.
    pub hidden_size: i64,
    /// Whether the cell adds biases.
    pub bias: bool,
}

/// The options of a [`GruCell`]. The defaults are those of nn.GRUCell.
pub type GruCellConfig = LstmCellConfig;

impl LstmCellConfig {
    /// Returns options with biases.
    pub fn new(input_size: i64, hidden_size: i64) -> Self {
        Self { input_size, hidden_size, bias: true }
    }
}

/// The options of an [`RnnCell`]. The defaults are those of nn.RNNCell.
#[derive(Debug, Clone, Copy)]
pub struct RnnCellConfig {
    /// See [`LstmCellConfig`].
    pub input_size: i64,
    /// See [`LstmCellConfig`].
    pub hidden_size: i64,
    /// See [`LstmCellConfig`].
    pub bias: bool,
    /// The activation function.
    pub nonlinearity: RnnNonlinearity,
}

impl RnnCellConfig {
    /// Returns options with biases and the function tanh.
    pub fn new(input_size: i64, hidden_size: i64) -> Self {
        Self { input_size, hidden_size, bias: true, nonlinearity: RnnNonlinearity::Tanh }
    }
}

/// Computes one step of an [`Lstm`](super::Lstm) with one layer, by the same formula; nn.LSTMCell.
///
/// | tensor | shape |
/// | --- | --- |
/// | input | `[N, input_size]`, or `[input_size]` |
/// | states h and c, default zeros | `[N, hidden_size]`, or `[hidden_size]` |
/// | output: the next h and c | the shape of the states |
///
/// Under autocast the cell computes in the autocast dtype, and the two states have this dtype. The
/// parameters have torch's names: `weight_ih`, `weight_hh`, `bias_ih` and `bias_hh`.
///
/// ```no_run,standalone_crate
/// use amp_core::{nn::LstmCell, prelude::*};
///
/// /// Continues a series of numbers `[N, 1]` by ten steps, each from the one before.
/// #[derive(Module)]
/// #[forward(|x| {
///     let (mut x, mut states) = (x.shallow_clone(), None);
///     let mut series = Vec::new();
///     for _ in 0..10 {
///         let (h, c) = cell(&x, states.as_ref().map(|(h, c)| (h, c)))?;
///         x = head(&h)?;
///         series.push(x.shallow_clone());
///         states = Some((h, c));
///     }
///     Ok(Tensor::f_cat(&series, 1)?)
/// })]
/// struct Continue {
///     #[layer(lstm_cell(1, 32))]
///     cell: LstmCell,
///     #[layer(linear(32, 1))]
///     head: Linear,
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct LstmCell(Weights);

/// Computes one step of a [`Gru`](super::Gru) with one layer, by the same formula; nn.GRUCell. The
/// shapes are as in an [`LstmCell`], but there is no cell state c.
#[derive(Debug)]
pub struct GruCell(Weights);

/// Computes one step of an [`Rnn`](super::Rnn) with one layer, by the same formula; nn.RNNCell. The
/// shapes are as in an [`LstmCell`], but there is no cell state c.
#[derive(Debug)]
pub struct RnnCell(Weights);

/// The kind of a cell, and its weights.
#[derive(Debug)]
struct Weights {
    cell: Cell,
    input_size: i64,
    hidden_size: i64,
    weight_ih: Tensor,
    weight_hh: Tensor,
    biases: Option<[Tensor; 2]>,
}

impl Weights {
    fn new(cell: Cell, [input_size, hidden_size]: [i64; 2], bias: bool) -> Result<Self> {
        Shape::single(cell, [input_size, hidden_size], bias).check()?;
        let bound = 1.0 / (hidden_size as f64).sqrt();
        let rows = cell.gates() * hidden_size;
        let draw = |size: &[i64]| init::uniform(size, bound);
        Ok(Self {
            cell,
            input_size,
            hidden_size,
            weight_ih: draw(&[rows, input_size])?,
            weight_hh: draw(&[rows, hidden_size])?,
            biases: if bias { Some([draw(&[rows])?, draw(&[rows])?]) } else { None },
        })
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        visitor.tensor("weight_ih", &self.weight_ih, Role::Parameter);
        visitor.tensor("weight_hh", &self.weight_hh, Role::Parameter);
        if let Some([bias_ih, bias_hh]) = &self.biases {
            visitor.tensor("bias_ih", bias_ih, Role::Parameter);
            visitor.tensor("bias_hh", bias_hh, Role::Parameter);
        }
    }

    /// Computes one step: returns the next states.
    fn step<const STATES: usize>(
        &self,
        input: &Tensor,
        states: Option<[&Tensor; STATES]>,
        cx: &Context,
    ) -> Result<[Tensor; STATES]> {
        let size = input.size();
        if !matches!(size.as_slice(), &[own] | &[_, own] if own == self.input_size) {
            return Err(refused(format!(
                "the input is {size:?}, but must be [batch, {own}] or [{own}]",
                own = self.input_size
            )));
        }
        let device = input.device();
        let autocast = autocast_kind(input, &self.weight_ih)?;
        let kind = autocast.unwrap_or(input.kind());
        // Autocast is switched off, because this function itself casts all tensors to the autocast
        // dtype, as the layers for sequences do.
        let _off = autocast.map(|_| AutocastGuard::off(device)).transpose()?;
        let is_single = size.len() == 1;
        let batched = |tensor: &Tensor| -> Result<Tensor> {
            let tensor = tensor.f_to_kind(kind)?;
            Ok(if is_single { tensor.f_unsqueeze(0)? } else { tensor })
        };
        let x = batched(input)?;
        let expected: Vec<i64> = [&size[..size.len() - 1], &[self.hidden_size]].concat();
        let mut given = Vec::with_capacity(STATES);
        for at in 0..STATES {
            given.push(match states.map(|states| states[at]) {
                None => Tensor::f_zeros([x.size()[0], self.hidden_size], (kind, device))?,
                Some(state) if state.size() == expected => batched(state)?,
                Some(state) => {
                    return Err(refused(format!(
                        "the state {} is {:?}, but must be {expected:?}",
                        ["h", "c"][at],
                        state.size()
                    )));
                }
            });
        }
        let weight = |weight: &Tensor| weight.f_to_kind(kind);
        let (w_ih, w_hh) = (weight(&self.weight_ih)?, weight(&self.weight_hh)?);
        let [b_ih, b_hh] = match &self.biases {
            Some([ih, hh]) => [Some(weight(ih)?), Some(weight(hh)?)],
            None => [None, None],
        };
        let h = &given[0];
        let mut next = if cx.has_substitutes() {
            let (ih, hh) = (factors(&w_ih, b_ih.as_ref(), cx)?, factors(&w_hh, b_hh.as_ref(), cx)?);
            let input = product("input", &x, &ih, cx)?;
            let hidden = product("hidden", h, &hh, cx)?;
            let states = with_uses(given, cx)?;
            next_states(self.cell, [&input, &hidden], &states[1..], cx)?
        } else {
            match self.cell {
                Cell::Lstm => {
                    let (h, c) = x.f_lstm_cell(&given, &w_ih, &w_hh, b_ih, b_hh)?;
                    vec![h, c]
                }
                Cell::Gru => vec![x.f_gru_cell(h, &w_ih, &w_hh, b_ih, b_hh)?],
                Cell::Tanh => vec![x.f_rnn_tanh_cell(h, &w_ih, &w_hh, b_ih, b_hh)?],
                Cell::Relu => vec![x.f_rnn_relu_cell(h, &w_ih, &w_hh, b_ih, b_hh)?],
            }
        };
        if is_single {
            for state in &mut next {
                *state = state.f_squeeze_dim(0)?;
            }
        }
        <[Tensor; STATES]>::try_from(next)
            .map_err(|next| refused(format!("a step gave {} states, not {STATES}", next.len())))
    }
}

macro_rules! constructor {
    ($($layer:ident $config:ident $cell:expr;)*) => {$(
        impl $layer {
            /// Creates the cell. Draws the weights and biases from U(±1/√hidden_size), in PyTorch's
            /// order.
            ///
            /// # Errors
            /// When a size is not positive.
            pub fn new(config: $config) -> Result<Self> {
                let $config { input_size, hidden_size, bias, .. } = config;
                Weights::new($cell(&config), [input_size, hidden_size], bias).map(Self)
            }
        }

        impl Visit for $layer {
            fn visit(&self, visitor: &mut dyn Visitor) {
                self.0.visit(visitor);
            }
        }
    )*};
}

constructor! {
    LstmCell LstmCellConfig |_: &LstmCellConfig| Cell::Lstm;
    GruCell GruCellConfig |_: &GruCellConfig| Cell::Gru;
    RnnCell RnnCellConfig |config: &RnnCellConfig| Cell::of(config.nonlinearity);
}

impl Forward for LstmCell {
    /// The input of the step, and the states h and c before the step. `None` stands for states of
    /// zeros.
    type Input = (&'static Tensor, Option<(&'static Tensor, &'static Tensor)>);
    /// The hidden state h and the cell state c after the step.
    type Output = (Tensor, Tensor);

    fn forward_with(
        &self,
        (input, states): (&Tensor, Option<(&Tensor, &Tensor)>),
        cx: &Context,
    ) -> Result<(Tensor, Tensor)> {
        let [h, c] = self.0.step(input, states.map(|(h, c)| [h, c]), cx)?;
        Ok((h, c))
    }

    fn own_op(&self) -> Op {
        Op::Matmul
    }
}

macro_rules! with_one_state {
    ($($layer:ident)*) => {$(
        impl Forward for $layer {
            /// The input of the step, and the state before the step. `None` stands for a state of
            /// zeros.
            type Input = (&'static Tensor, Option<&'static Tensor>);
            /// The next state.
            type Output = Tensor;

            fn forward_with(
                &self,
                (input, state): (&Tensor, Option<&Tensor>),
                cx: &Context,
            ) -> Result<Tensor> {
                let [h] = self.0.step(input, state.map(|h| [h]), cx)?;
                Ok(h)
            }

            fn own_op(&self) -> Op {
                Op::Matmul
            }
        }
    )*};
}

with_one_state!(GruCell RnnCell);
