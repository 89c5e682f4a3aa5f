//! A metric that you write yourself. The README of this crate explains it.

use amp_core::{
    Error, Result,
    metric::{Metric, MetricState, Reduction},
    tch::{Kind, Tensor},
};

/// The mean of |output − target| over all elements.
#[derive(Debug, Clone, Copy)]
pub struct MeanAbsoluteError;

impl Metric for MeanAbsoluteError {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let (found, expected) = (output.size(), target.size());
        if found != expected {
            return Err(Error::config(format!(
                "mean absolute error: the output has shape {found:?}, the target {expected:?}"
            )));
        }
        let difference = output.f_to_kind(Kind::Double)?.f_sub(target)?;
        MetricState::mean(&difference.f_abs()?.f_sum(Kind::Double)?, target.numel() as f64)
    }

    fn reduction(&self) -> Reduction {
        Reduction::Mean
    }
}

/// `cargo test` compiles and runs the README's Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Page;
