//! A block that models can contain.

use amp_core::prelude::*;

/// x + f(x).
#[derive(Module)]
#[forward(|x| Ok(x.f_add(&inner(x)?)?))]
pub(crate) struct Residual {
    /// The number of features of the input and of the output.
    #[hparam]
    width: i64,
    /// The probability with which a feature is dropped.
    #[hparam(default = 0.1)]
    dropout: f64,
    #[layer(sequential(linear(width, width), relu, dropout(dropout)))]
    inner: Sequential,
}
