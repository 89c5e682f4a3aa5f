//! Tests of recurrent layers that run with an observer (`Substitute`), which may replace their
//! intermediate tensors. The layers then compute one time step after the other. The results must
//! equal those of libtorch's fused operation.

use std::{cell::Cell, collections::BTreeMap, rc::Rc};

use amp_core::{
    Result,
    nn::{
        Casts, Context, Forward, Gru, GruCell, GruCellConfig, GruConfig, Lstm, LstmCell,
        LstmCellConfig, LstmConfig, Rnn, RnnCell, RnnCellConfig, RnnConfig, RnnNonlinearity,
        Substitute, Visit, Visitor, parameters, place,
    },
    precision::{Policy, Precision},
    tch::{self, Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{relative, wide},
    device,
    rounds::{Rounds, distance},
    seeded,
};

/// A recurrent layer or a cell.
enum Layer {
    Lstm(Lstm),
    Gru(Gru),
    Rnn(Rnn),
    LstmCell(LstmCell),
    GruCell(GruCell),
    RnnCell(RnnCell),
}

impl Layer {
    /// Runs the layer. Returns the output and the last states, or only the states of a cell, which
    /// has no other output.
    fn run(
        &self,
        x: &Tensor,
        states: &[Tensor],
        lengths: Option<&Tensor>,
        cx: &Context,
    ) -> Result<Vec<Tensor>> {
        let (one, two) = (states.first(), states.first().zip(states.get(1)));
        Ok(match self {
            Self::Lstm(layer) => {
                let (output, (h, c)) = layer.forward_with((x, two, lengths), cx)?;
                vec![output, h, c]
            }
            Self::Gru(layer) => {
                let (output, h) = layer.forward_with((x, one, lengths), cx)?;
                vec![output, h]
            }
            Self::Rnn(layer) => {
                let (output, h) = layer.forward_with((x, one, lengths), cx)?;
                vec![output, h]
            }
            Self::LstmCell(layer) => {
                let (h, c) = layer.forward_with((x, two), cx)?;
                vec![h, c]
            }
            Self::GruCell(layer) => vec![layer.forward_with((x, one), cx)?],
            Self::RnnCell(layer) => vec![layer.forward_with((x, one), cx)?],
        })
    }
}

impl Visit for Layer {
    fn visit(&self, visitor: &mut dyn Visitor) {
        match self {
            Self::Lstm(layer) => layer.visit(visitor),
            Self::Gru(layer) => layer.visit(visitor),
            Self::Rnn(layer) => layer.visit(visitor),
            Self::LstmCell(layer) => layer.visit(visitor),
            Self::GruCell(layer) => layer.visit(visitor),
            Self::RnnCell(layer) => layer.visit(visitor),
        }
    }
}

/// An observer that replaces each tensor by an equal one, and counts the calls of its functions
/// `within`, `weight` and `next_use`.
#[derive(Default)]
struct Same {
    inner: Cell<i64>,
    weights: Cell<i64>,
    uses: Cell<i64>,
}

impl Substitute for Same {
    fn given(&self, _: &str, input: &Tensor) -> Result<Tensor> {
        Ok(input.shallow_clone())
    }

    fn returned(&self, _: &str, output: &Tensor) -> Result<Tensor> {
        Ok(output.shallow_clone())
    }

    fn within(&self, _: &str, _: &str, inner: &Tensor) -> Result<Tensor> {
        self.inner.set(self.inner.get() + 1);
        Ok(inner.f_mul_scalar(1.0)?)
    }

    fn next_use(&self, _: &str, inner: &Tensor) -> Result<Tensor> {
        self.uses.set(self.uses.get() + 1);
        Ok(inner.shallow_clone())
    }

    fn weight(&self, _: &str, weight: &Tensor, _: Casts) -> Result<Tensor> {
        self.weights.set(self.weights.get() + 1);
        Ok(weight.shallow_clone())
    }
}

fn plain(precision: Precision) -> Context {
    Context::new(Policy::new(precision, device()), true)
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Double, device())).set_requires_grad(true)
}

/// Computes the gradients of a weighted sum of the outputs. The factors of this sum are bf16
/// numbers, so they are the same in every precision.
fn gradients(outputs: &[Tensor], of: &[Tensor]) -> Vec<Tensor> {
    let sums = outputs.iter().zip(1..).map(|(output, at)| {
        let places = Tensor::arange(output.numel() as i64, (Kind::Double, output.device())) + at;
        let factors = places.sin().to_kind(Kind::BFloat16).to_kind(output.kind());
        (output * factors.view_as(output)).sum(output.kind())
    });
    let sum: Tensor = sums.sum();
    Tensor::run_backward(&[sum], of, true, false)
}

/// Checks that outputs and gradients are the same with and without an observer that replaces
/// nothing. Returns the observer.
fn check(
    layer: &Layer,
    x: &Tensor,
    states: &[Tensor],
    lengths: Option<&Tensor>,
) -> Result<Rc<Same>> {
    let mut leaves: Vec<Tensor> =
        parameters(layer).iter().map(|own| own.tensor.shallow_clone()).collect();
    leaves.extend([x].into_iter().chain(states).map(Tensor::shallow_clone));
    let seed = 11;
    tch::manual_seed(seed);
    let expected = layer.run(x, states, lengths, &plain(Precision::F64True))?;
    let same = Rc::new(Same::default());
    tch::manual_seed(seed);
    let observed = plain(Precision::F64True).with_substitute(same.clone());
    let found = layer.run(x, states, lengths, &observed)?;
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(&expected);
    for (at, (found, expected)) in pairs.enumerate() {
        assert_eq!(found.size(), expected.size(), "output {at}");
        assert!(relative(found, expected) < 1e-12, "output {at}: {}", relative(found, expected));
    }
    let of_both = gradients(&found, &leaves).into_iter().zip(gradients(&expected, &leaves));
    for (at, (found, expected)) in of_both.enumerate() {
        assert!(
            relative(&found, &expected) < 1e-11,
            "gradient {at}: {}",
            relative(&found, &expected)
        );
    }
    Ok(same)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kinds {
    Lstm,
    Projected,
    Gru,
    Tanh,
    Relu,
}

/// The number of elements of an input, and of the hidden state.
type Widths = (i64, i64);

impl Kinds {
    /// Creates a layer with this number of layers and of directions.
    fn layer(
        self,
        (input, hidden): Widths,
        [num_layers, directions]: [i64; 2],
        batch_first: bool,
        dropout: f64,
    ) -> Result<Layer> {
        let bidirectional = directions == 2;
        let rnn = |nonlinearity| -> Result<Layer> {
            let config = RnnConfig { nonlinearity, ..RnnConfig::new(input, hidden) };
            let config = RnnConfig { num_layers, bidirectional, batch_first, dropout, ..config };
            Rnn::new(config).map(Layer::Rnn)
        };
        let lstm = |proj_size, bias| -> Result<Layer> {
            let config = LstmConfig { proj_size, bias, ..LstmConfig::new(input, hidden) };
            let config = LstmConfig { num_layers, bidirectional, batch_first, dropout, ..config };
            Lstm::new(config).map(Layer::Lstm)
        };
        match self {
            Self::Lstm => lstm(0, true),
            Self::Projected => lstm(hidden / 2, false),
            Self::Gru => {
                let config =
                    GruConfig { num_layers, bidirectional, ..GruConfig::new(input, hidden) };
                Gru::new(GruConfig { batch_first, dropout, ..config }).map(Layer::Gru)
            }
            Self::Tanh => rnn(RnnNonlinearity::Tanh),
            Self::Relu => rnn(RnnNonlinearity::Relu),
        }
    }

    /// Draws initial states of four sequences.
    fn states(self, rows: i64) -> Vec<Tensor> {
        match self {
            Self::Lstm => vec![random(&[rows, 4, 6]), random(&[rows, 4, 6])],
            Self::Projected => vec![random(&[rows, 4, 3]), random(&[rows, 4, 6])],
            _ => vec![random(&[rows, 4, 6])],
        }
    }
}

/// With an observer, outputs and gradients of recurrent layers equal those of the fused operation.
/// The cases cover all kinds of layers, several layers, both directions, sequences of different
/// lengths, and dropout between layers.
#[rstest]
fn the_steps_of_sequences_equal_the_fused_operation(
    #[values(Kinds::Lstm, Kinds::Projected, Kinds::Gru, Kinds::Tanh, Kinds::Relu)] cell: Kinds,
    #[values([1, 1], [1, 2], [3, 2])] shape: [i64; 2],
    #[values(None, Some([2, 5, 3, 2]))] lengths: Option<[i64; 4]>,
    #[values(0.0, 0.4)] dropout: f64,
) -> Result<()> {
    let _generator = seeded(1);
    for batch_first in [false, true] {
        let layer = cell.layer((4, 6), shape, batch_first, dropout)?;
        place(&layer, Policy::new(Precision::F64True, device()), &BTreeMap::default())?;
        let x = random(if batch_first { &[4, 5, 4] } else { &[5, 4, 4] });
        let lengths = lengths.map(|lengths| Tensor::from_slice(&lengths).to_device(device()));
        let states = cell.states(shape[0] * shape[1]);
        let same = check(&layer, &x, &states, lengths.as_ref())?;
        // In each step and direction, the observer gets at least three tensors: the product of the
        // hidden state and its weight, the sum of this product and the input's product, and the new
        // state. The observer also gets each use of the hidden state and of its weight.
        let Same { inner, weights, uses } = &*same;
        let directions = shape[0] * shape[1];
        assert!(inner.get() > 2 * 5 * directions, "{} tensors", inner.get());
        assert!(uses.get() > 2 * 5 * directions, "{} uses", uses.get());
        assert_eq!(weights.get(), parameters(&layer).len() as i64);
    }
    Ok(())
}

/// With an observer, outputs and gradients of cells equal those of the fused operations, for
/// batches and for single examples.
#[rstest]
#[case::lstm(LstmCell::new(LstmCellConfig::new(4, 6)).map(Layer::LstmCell), 2)]
#[case::gru(GruCell::new(GruCellConfig::new(4, 6)).map(Layer::GruCell), 1)]
#[case::tanh(RnnCell::new(RnnCellConfig::new(4, 6)).map(Layer::RnnCell), 1)]
#[case::relu(
    RnnCell::new(RnnCellConfig { nonlinearity: RnnNonlinearity::Relu, bias: false, ..RnnCellConfig::new(4, 6) })
        .map(Layer::RnnCell),
    1
)]
fn a_step_of_a_cell_equals_the_fused_operation(
    #[case] layer: Result<Layer>,
    #[case] states: usize,
    #[values(&[], &[3])] batch: &[i64],
) -> Result<()> {
    let _generator = seeded(2);
    let layer = layer?;
    place(&layer, Policy::new(Precision::F64True, device()), &BTreeMap::default())?;
    let shape = |width| [batch, &[width]].concat();
    let states: Vec<Tensor> = (0..states).map(|_| random(&shape(6))).collect();
    let same = check(&layer, &random(&shape(4)), &states, None)?;
    assert!(same.inner.get() >= 3 && same.uses.get() >= 1);
    assert_eq!(same.weights.get(), parameters(&layer).len() as i64);
    Ok(())
}

/// The observer gets every tensor that a bf16 layer on the CPU rounds. If it rounds these tensors
/// in an f32 layer, the results come closer to those of the bf16 layer: outputs and gradients
/// differ by less than 0.6 times the difference between an f32 and a bf16 layer without an
/// observer. What remains is mostly due to sums whose terms are added in another order, and which
/// then round to a neighbouring number.
#[rstest]
fn rounded_steps_are_nearly_those_of_16_bits(
    #[values(Kinds::Projected, Kinds::Gru, Kinds::Tanh)] cell: Kinds,
) -> Result<()> {
    let _generator = seeded(3);
    let layer = cell.layer((20, 64), [2, 1], false, 0.0)?;
    let host = |precision| Context::new(Policy::new(precision, Device::Cpu), true);
    let run = |precision: Precision, cx: &Context, x: &Tensor| -> Result<Vec<Tensor>> {
        place(&layer, Policy::new(precision, Device::Cpu), &BTreeMap::default())?;
        let leaves: Vec<Tensor> =
            parameters(&layer).iter().map(|own| own.tensor.shallow_clone()).collect();
        let output = layer.run(&x.to_kind(precision.storage()), &[], None, cx)?.remove(0);
        let mut all = gradients(std::slice::from_ref(&output), &leaves);
        all.insert(0, output);
        Ok(all.iter().map(wide).collect())
    };
    let x = Tensor::randn([50, 32, 20], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
    // This run casts the weights to bf16, and the next ones cast them back to f32. All runs
    // therefore use the same weights.
    let actual = run(Precision::Bf16True, &host(Precision::Bf16True), &x)?;
    let exact = run(Precision::F32True, &host(Precision::F32True), &x)?;
    let rounds = Rc::new(Rounds::to(Kind::BFloat16));
    let cx = host(Precision::F32True).with_substitute(rounds);
    let emulated = run(Precision::F32True, &cx, &x)?;
    for (at, ((actual, exact), emulated)) in actual.iter().zip(&exact).zip(&emulated).enumerate() {
        let (error, left) = (distance(actual, exact), distance(actual, emulated));
        assert!(error > 1e-3, "{at}: {error}");
        assert!(left < 0.6 * error, "{at}: difference {left} with rounding, {error} without");
    }
    Ok(())
}
