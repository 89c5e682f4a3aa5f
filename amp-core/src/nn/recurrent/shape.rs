//! The sizes of a recurrent network, and the names and sizes of its weights.

use super::{RnnNonlinearity, lengths::refused};
use crate::Result;

/// The kind of cell, which determines the formula of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    Lstm,
    Gru,
    Tanh,
    Relu,
}

impl Cell {
    /// Returns the cell of a plain recurrent network (nn.RNN) with this nonlinearity.
    pub(super) fn of(nonlinearity: RnnNonlinearity) -> Self {
        match nonlinearity {
            RnnNonlinearity::Tanh => Self::Tanh,
            RnnNonlinearity::Relu => Self::Relu,
        }
    }

    /// Returns the number of gates. `weight_ih` and `weight_hh` have this number times
    /// `hidden_size` rows.
    pub(super) fn gates(self) -> i64 {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
            Self::Tanh | Self::Relu => 1,
        }
    }

    /// Returns cuDNN's code for the cell (cudnnRNNMode_t).
    pub(super) fn mode(self) -> i64 {
        match self {
            Self::Relu => 0,
            Self::Tanh => 1,
            Self::Lstm => 2,
            Self::Gru => 3,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) cell: Cell,
    pub(super) input_size: i64,
    pub(super) hidden_size: i64,
    pub(super) num_layers: i64,
    pub(super) bias: bool,
    pub(super) batch_first: bool,
    pub(super) dropout: f64,
    pub(super) bidirectional: bool,
    pub(super) proj_size: i64,
}

impl Shape {
    /// Returns the shape of a single layer in one direction.
    pub(super) fn single(cell: Cell, [input_size, hidden_size]: [i64; 2], bias: bool) -> Self {
        Self {
            cell,
            input_size,
            hidden_size,
            num_layers: 1,
            bias,
            batch_first: false,
            dropout: 0.0,
            bidirectional: false,
            proj_size: 0,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { input_size, hidden_size, num_layers, proj_size, .. } = *self;
        if input_size < 1 || hidden_size < 1 || num_layers < 1 {
            return Err(refused(format!(
                "input_size is {input_size}, hidden_size {hidden_size} and num_layers {num_layers}, but \
                 each must be at least 1"
            )));
        }
        if !(0..hidden_size).contains(&proj_size) {
            return Err(refused(format!(
                "proj_size is {proj_size}, but must be below hidden_size, {hidden_size}"
            )));
        }
        Ok(())
    }

    pub(super) fn directions(&self) -> i64 {
        if self.bidirectional { 2 } else { 1 }
    }

    /// Returns the number of elements of the output of one step.
    pub(super) fn output_size(&self) -> i64 {
        if self.proj_size > 0 { self.proj_size } else { self.hidden_size }
    }

    /// Returns the number of features of a layer's input.
    pub(super) fn input_of(&self, layer: i64) -> i64 {
        if layer == 0 { self.input_size } else { self.directions() * self.output_size() }
    }

    /// Returns the number of weight tensors of one layer in one direction.
    pub(super) fn per_direction(&self) -> i64 {
        2 + if self.bias { 2 } else { 0 } + i64::from(self.proj_size > 0)
    }

    /// Returns the names and sizes of the weights of one layer in one direction, in torch's order.
    fn weights_of(&self, layer: i64) -> Vec<(&'static str, Vec<i64>)> {
        let rows = self.cell.gates() * self.hidden_size;
        let mut weights = vec![
            ("weight_ih", vec![rows, self.input_of(layer)]),
            ("weight_hh", vec![rows, self.output_size()]),
        ];
        if self.bias {
            weights.extend([("bias_ih", vec![rows]), ("bias_hh", vec![rows])]);
        }
        if self.proj_size > 0 {
            weights.push(("weight_hr", vec![self.proj_size, self.hidden_size]));
        }
        weights
    }

    /// Returns the names and sizes of all weights.
    pub(super) fn weights(&self) -> Vec<(String, Vec<i64>)> {
        let suffixes = if self.bidirectional { &["", "_reverse"][..] } else { &[""] };
        let mut weights = Vec::new();
        for layer in 0..self.num_layers {
            for suffix in suffixes {
                let of_one = self.weights_of(layer).into_iter();
                weights
                    .extend(of_one.map(|(name, size)| (format!("{name}_l{layer}{suffix}"), size)));
            }
        }
        weights
    }
}
