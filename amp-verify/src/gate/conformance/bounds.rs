//! How far a precision may be from 32-true: by the spread of unchanged runs.

use amp_core::{Error, Result, precision::Precision, tch::Device};

use super::Figures;
use crate::{
    gate::reason::{Failure, Reason},
    recorded::{Margins, Population, StepSpreads},
    registry::Model,
    verdict::tolerance_factor,
};

/// The share of unchanged runs of which one figure may be beyond its bound. A model's precision has
/// five figures.
pub const RISK: f64 = 1e-5;
/// How sure it is that the share is no larger, since the spread is known from few runs.
const CONFIDENCE: f64 = 0.95;
/// What rounding to f32 alone makes of a figure: 2⁻²³. No bound is below it.
const ROUNDING: f64 = 1.0 / 8_388_608.0;

/// The bounds of one model under one precision.
///
/// Each is an upper tolerance limit, mean + k·s with the factor k of [`tolerance_factor`]: with
/// confidence 0.95 no more than [`RISK`] of unchanged runs are beyond it. An error's square is a sum
/// of squares, whose cube root is close to normal (Wilson and Hilferty 1931): its mean and s are those
/// of error^(2/3). Differences have two sides, each with half of the risk. Both suppose the normal
/// distribution further out than was measured.
///
/// 64-true differs from 32-true by rounding of 2⁻²⁴, except where that moves a unit of ReLU or a sign
/// to the other side: too rare for a spread, and as much as the same does under 16-mixed. Its bounds on
/// gradients and weights are at least those of 16-mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Of [`Figures::gradient_error`].
    pub gradient_error: f64,
    /// Of [`Figures::loss_error`].
    pub loss_error: f64,
    /// Of [`Figures::update_error`].
    pub update_error: f64,
    /// Of [`Figures::update_bias`].
    pub update_bias: f64,
    /// Of [`Figures::norm_bias`].
    pub norm_bias: f64,
}

/// The limit of an error, whose mean and deviation are those of its power 2/3.
fn of_error(population: &Population, n: usize) -> f64 {
    let k = tolerance_factor(RISK, CONFIDENCE, n);
    k.mul_add(population.sigma, population.mean).powf(1.5).max(ROUNDING)
}

/// The limit of a difference's size.
fn of_difference(population: &Population, n: usize) -> f64 {
    let k = tolerance_factor(RISK / 2.0, CONFIDENCE, n);
    k.mul_add(population.sigma, population.mean.abs()).max(ROUNDING)
}

impl Bounds {
    /// The model's bounds on a kind of device. CUDA has its own, recorded when autocast still rounded
    /// the log-probabilities of every cross entropy there, so that a first loss was up to sixty times
    /// as far from 32-true's.
    ///
    /// # Errors
    /// When nothing was recorded of the model under this precision.
    pub fn of(
        margins: &Margins,
        model: &Model,
        precision: Precision,
        device: Device,
    ) -> Result<Self> {
        let kind = if device.is_cuda() { "cuda" } else { "cpu" };
        let found = margins.first_steps.get(kind).and_then(|recorded| {
            let spreads = recorded.models.get(model.recorded_name())?;
            let of =
                |precision: Precision| Some(Self::new(spreads.get(precision.name())?, recorded.n));
            let own = of(precision)?;
            match precision {
                Precision::F64True => Some(own.at_least(of(Precision::F16Mixed)?)),
                _ => Some(own),
            }
        });
        found.ok_or_else(|| {
            Error::config(format!(
                "margins.json has no first steps of {} under {precision} on {kind}: record them \
                 with `cargo amp margins --model {} --device {kind}`",
                model.name(),
                model.name()
            ))
        })
    }

    fn new(spreads: &StepSpreads, n: usize) -> Self {
        Self {
            gradient_error: of_error(&spreads.gradient_error, n),
            loss_error: of_difference(&spreads.loss_error, n),
            update_error: of_error(&spreads.update_error, n),
            update_bias: of_difference(&spreads.update_bias, n),
            norm_bias: of_difference(&spreads.norm_bias, n),
        }
    }

    /// The wider of two, but for the loss.
    fn at_least(self, other: Self) -> Self {
        Self {
            gradient_error: self.gradient_error.max(other.gradient_error),
            loss_error: self.loss_error,
            update_error: self.update_error.max(other.update_error),
            update_bias: self.update_bias.max(other.update_bias),
            norm_bias: self.norm_bias.max(other.norm_bias),
        }
    }

    /// The figures beyond their bound.
    pub fn exceeded(&self, figures: &Figures) -> Vec<Failure> {
        let gradient = format!("the first gradient of `{}`", figures.gradient_parameter);
        let all = [
            ("the first loss", figures.loss_error, self.loss_error),
            (gradient.as_str(), figures.gradient_error, self.gradient_error),
            ("the weights' way", figures.update_error, self.update_error),
            ("the length of the weights' way", figures.update_bias, self.update_bias),
            ("the norm of the weights", figures.norm_bias, self.norm_bias),
        ];
        // NaN is within no bound.
        let beyond = all.iter().filter(|(_, value, bound)| value.is_nan() || value.abs() > *bound);
        beyond
            .map(|(what, value, bound)| {
                let text = format!("{what} is {value:.2e} from 32-true, beyond {bound:.1e}");
                Failure::new(Reason::NotConformant, text)
            })
            .collect()
    }
}
