//! Recurrent layers.

mod cell;
mod lengths;
mod shape;
mod stack;
mod steps;

use tch::Tensor;

pub use self::cell::{GruCell, GruCellConfig, LstmCell, LstmCellConfig, RnnCell, RnnCellConfig};
use self::{
    shape::{Cell, Shape},
    stack::Stack,
};
use super::{Context, Forward, Op, Visit, Visitor};
use crate::Result;

/// The options of an [`Lstm`]. The defaults are those of nn.LSTM.
#[derive(Debug, Clone, Copy)]
pub struct LstmConfig {
    /// The number of elements of the input at each step.
    pub input_size: i64,
    /// The number of elements of the hidden state.
    pub hidden_size: i64,
    /// The number of layers. The input of each layer is the output of the previous one.
    pub num_layers: i64,
    /// Whether the layers add biases.
    pub bias: bool,
    /// Whether inputs and outputs are `[N, L, …]` instead of `[L, N, …]`.
    pub batch_first: bool,
    /// The probability of dropout between layers in training. With one layer there is no dropout.
    pub dropout: f64,
    /// Whether the layer also reads the sequences from the end to the start.
    pub bidirectional: bool,
    /// The size to which the hidden state is projected. It must be below `hidden_size`. 0 means
    /// that there is no projection.
    pub proj_size: i64,
}

/// The options of a [`Gru`]. The defaults are those of nn.GRU.
#[derive(Debug, Clone, Copy)]
pub struct GruConfig {
    /// See [`LstmConfig`].
    pub input_size: i64,
    /// See [`LstmConfig`].
    pub hidden_size: i64,
    /// See [`LstmConfig`].
    pub num_layers: i64,
    /// See [`LstmConfig`].
    pub bias: bool,
    /// See [`LstmConfig`].
    pub batch_first: bool,
    /// See [`LstmConfig`].
    pub dropout: f64,
    /// See [`LstmConfig`].
    pub bidirectional: bool,
}

/// The options of an [`Rnn`]. The defaults are those of nn.RNN.
#[derive(Debug, Clone, Copy)]
pub struct RnnConfig {
    /// See [`LstmConfig`].
    pub input_size: i64,
    /// See [`LstmConfig`].
    pub hidden_size: i64,
    /// See [`LstmConfig`].
    pub num_layers: i64,
    /// The activation function.
    pub nonlinearity: RnnNonlinearity,
    /// See [`LstmConfig`].
    pub bias: bool,
    /// See [`LstmConfig`].
    pub batch_first: bool,
    /// See [`LstmConfig`].
    pub dropout: f64,
    /// See [`LstmConfig`].
    pub bidirectional: bool,
}

/// The activation function of an [`Rnn`], which is applied to W·x + U·h + b in each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RnnNonlinearity {
    /// tanh(x).
    #[default]
    Tanh,
    /// max(x, 0).
    Relu,
}

/// Implements, for the options of a layer, a constructor with torch's defaults and the conversion
/// to a [`Shape`].
macro_rules! config {
    ($($config:ident { $($option:ident: $value:expr),* })*) => {$(
        impl $config {
            /// Returns options for one layer that reads sequences forwards, with biases and without
            /// dropout, and with time as the first dimension.
            pub fn new(input_size: i64, hidden_size: i64) -> Self {
                Self {
                    input_size,
                    hidden_size,
                    num_layers: 1,
                    bias: true,
                    batch_first: false,
                    dropout: 0.0,
                    bidirectional: false,
                    $($option: $value,)*
                }
            }

            fn shape(&self, cell: Cell, proj_size: i64) -> Shape {
                let Self { input_size, hidden_size, num_layers, bias, .. } = *self;
                let Self { batch_first, dropout, bidirectional, .. } = *self;
                Shape {
                    cell,
                    input_size,
                    hidden_size,
                    num_layers,
                    bias,
                    batch_first,
                    dropout,
                    bidirectional,
                    proj_size,
                }
            }
        }
    )*};
}

config! {
    LstmConfig { proj_size: 0 }
    GruConfig {}
    RnnConfig { nonlinearity: RnnNonlinearity::Tanh }
}

/// Long short-term memory for sequences; nn.LSTM. From the input x and the states h and c, a step
/// computes
///
/// ```text
/// i, f, o = σ(W·x + U·h + b), with separate rows of the weights, in the order i, f, g, o
/// g = tanh(W·x + U·h + b)
/// c ← f·c + i·g
/// h ← o·tanh(c), multiplied by weight_hr if there is a projection
/// ```
///
/// where W is `weight_ih`, U is `weight_hh`, and b is the sum of `bias_ih` and `bias_hh`.
///
/// | input | shape |
/// | --- | --- |
/// | sequence | `[L, N, input_size]`, with `batch_first` `[N, L, input_size]` |
/// | initial states, default zeros | h `[layers·directions, N, hidden]` and c `[…, hidden_size]` |
/// | lengths, default L for all | `[N]` integers from 1 to L, in any order |
///
/// | output | shape |
/// | --- | --- |
/// | output of the last layer | `[L, N, directions·hidden]`, with `batch_first` `[N, L, …]` |
/// | last states | h and c in the shapes of the initial states |
///
/// Here `hidden` is `proj_size`, or `hidden_size` if there is no projection. As in torch **the
/// first dimension is time**, unless `batch_first` is set.
///
/// With lengths, the layer computes what torch's layer computes for a packed sequence. Steps after
/// the end of a sequence have no effect, and their output is zero. The last states are the states
/// at the end of each sequence. The reverse direction begins at the end of each sequence. The
/// output has the same length L as the input. The host reads the lengths, so a training step with
/// lengths cannot be recorded as a CUDA graph.
///
/// Under autocast the layer computes in the autocast dtype. This includes bf16 on CUDA, where
/// libtorch's autocast would compute in f16. The parameters have torch's names: `weight_ih_l0`,
/// `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, `weight_hr_l0`, then `…_l0_reverse`, and so on for
/// each layer.
///
/// ```no_run,standalone_crate
/// use amp_core::{nn::Lstm, prelude::*};
///
/// /// Sentiment of sentences of different lengths, from the last layer's last states.
/// #[derive(Module)]
/// #[forward(|ids, lengths: &Tensor| {
///     let (_, (h, _)) = lstm(&words(ids)?, None, Some(lengths))?;
///     head(&Tensor::f_cat(&[h.f_get(-2)?, h.f_get(-1)?], -1)?)
/// })]
/// struct Sentiment {
///     #[layer(embedding(10_000, 64))]
///     words: Embedding,
///     #[layer(lstm(64, 128, num_layers = 2, bidirectional = true, dropout = 0.3, batch_first = true))]
///     lstm: Lstm,
///     #[layer(linear(256, 2))]
///     head: Linear,
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct Lstm(Stack);

/// Gated recurrent units for sequences; nn.GRU. A step computes
///
/// ```text
/// r, z = σ(W·x + U·h + b), with separate rows of the weights, in the order r, z, n
/// n = tanh(W·x + b_ih + r·(U·h + b_hh))
/// h ← (1 − z)·n + z·h
/// ```
///
/// W, U, b, the inputs and the outputs are as in an [`Lstm`], and b_ih and b_hh are `bias_ih` and
/// `bias_hh`. There is no cell state c and no projection.
#[derive(Debug)]
pub struct Gru(Stack);

/// A plain recurrent network, h ← tanh(W·x + U·h + b), or with ReLU instead of tanh; nn.RNN. W, U,
/// b, the inputs and the outputs are as in an [`Lstm`], but there is no cell state c and no
/// projection.
#[derive(Debug)]
pub struct Rnn(Stack);

macro_rules! constructor {
    ($($layer:ident $config:ident $cell:expr, $proj_size:expr;)*) => {$(
        impl $layer {
            /// Creates the layer. Draws all weights and biases from U(±1/√hidden_size), in
            /// PyTorch's order.
            ///
            /// # Errors
            /// When a size is not positive, `dropout` is not a probability, or `proj_size` is not
            /// below `hidden_size`.
            pub fn new(config: $config) -> Result<Self> {
                Stack::new(config.shape($cell(&config), $proj_size(&config))).map(Self)
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
    Lstm LstmConfig |_: &LstmConfig| Cell::Lstm, |config: &LstmConfig| config.proj_size;
    Gru GruConfig |_: &GruConfig| Cell::Gru, |_: &GruConfig| 0;
    Rnn RnnConfig |config: &RnnConfig| Cell::of(config.nonlinearity), |_: &RnnConfig| 0;
}

impl Forward for Lstm {
    /// The sequences, the initial states h and c, and the lengths of the sequences.
    type Input =
        (&'static Tensor, Option<(&'static Tensor, &'static Tensor)>, Option<&'static Tensor>);
    /// The output of the last layer, and the last states h and c of each layer.
    type Output = (Tensor, (Tensor, Tensor));

    fn forward_with(
        &self,
        (input, initial, lengths): (&Tensor, Option<(&Tensor, &Tensor)>, Option<&Tensor>),
        cx: &Context,
    ) -> Result<Self::Output> {
        let initial = initial.map(|(h, c)| [h, c]);
        let (output, [h, c]) = self.0.run(input, initial, lengths, cx)?;
        Ok((output, (h, c)))
    }

    fn own_op(&self) -> Op {
        Op::Matmul
    }
}

macro_rules! with_one_state {
    ($($layer:ident)*) => {$(
        impl Forward for $layer {
            /// The sequences, the initial state, and the lengths of the sequences.
            type Input = (&'static Tensor, Option<&'static Tensor>, Option<&'static Tensor>);
            /// The output of the last layer, and the last state of each layer.
            type Output = (Tensor, Tensor);

            fn forward_with(
                &self,
                (input, initial, lengths): (&Tensor, Option<&Tensor>, Option<&Tensor>),
                cx: &Context,
            ) -> Result<Self::Output> {
                let (output, [h]) = self.0.run(input, initial.map(|h| [h]), lengths, cx)?;
                Ok((output, h))
            }

            fn own_op(&self) -> Op {
                Op::Matmul
            }
        }
    )*};
}

with_one_state!(Gru Rnn);
