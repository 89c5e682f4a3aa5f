//! The distances between the first steps of a precision and those of 32-true.

use std::{collections::BTreeMap, fmt};

use amp_core::{
    Error, Result,
    tch::{Kind, Tensor},
};

use super::{STEPS, steps::Ran};
use crate::rounding::rounding_of;

/// If the norm of a gradient is less than this share of the whole gradient's norm, the gradient may
/// consist of rounding errors, for example for a bias before a batch norm. Its error is then
/// relative to this share.
const SHARE: f64 = 1e-2;

/// The compared properties of the first steps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// (l − l₃₂)/l₃₂ for the first loss l.
    Loss,
    /// ‖g − g₃₂‖/‖g₃₂‖ for the first gradient g of a parameter.
    Gradient(String),
    /// ‖w − w₃₂‖/‖w₃₂ − w₀‖ for all weights w after the steps, with the initial weights w₀.
    Update,
    /// ‖w − w₀‖/‖w₃₂ − w₀‖ − 1, the relative difference of the updates' norms.
    Length,
    /// (‖w‖ − ‖w₃₂‖)/‖w₃₂ − w₀‖. It reveals rounding towards zero and a missing weight decay.
    Norm,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loss => f.write_str("the first loss"),
            Self::Gradient(parameter) => write!(f, "the first gradient of `{parameter}`"),
            Self::Update => f.write_str("the update of the weights"),
            Self::Length => f.write_str("the norm of the weights' update"),
            Self::Norm => f.write_str("the norm of the weights"),
        }
    }
}

/// The figures of one run by property.
pub(super) type Figures = BTreeMap<What, f64>;

/// Returns the norm of all tensors together in f64, computed for one tensor at a time.
fn norm<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<f64> {
    let mut sum = 0.0;
    for tensor in tensors {
        let exact = tensor.f_to_kind(Kind::Double)?;
        sum += exact.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum.sqrt())
}

/// Returns ‖a − b‖ in f64, computed for one tensor at a time.
fn distance(a: &[Tensor], b: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for (a, b) in a.iter().zip(b) {
        let exact = a.f_to_kind(Kind::Double)?;
        let off = exact.f_sub(&b.f_to_device(a.device())?.f_to_kind(Kind::Double)?)?;
        sum += off.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum.sqrt())
}

/// Returns a/b, or 0 if a is 0.
fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

/// Returns the error of the weights' figures that f32 itself causes: constants of the optimizer
/// such as 1 − lr·λ are rounded, which changes all weights in the same direction in each step.
pub(super) fn of_constants(exact: &Ran) -> Result<f64> {
    let way = distance(&exact.weights, &exact.initial)?;
    Ok(ratio(STEPS as f64 * rounding_of(Kind::Float) * norm(&exact.weights)?, way))
}

pub(super) fn compare(exact: &Ran, ran: &Ran) -> Result<Figures> {
    let loss = |run: &Ran| match &run.trace.loss {
        Some(loss) => Ok(loss.f_double_value(&[])?),
        None => Ok::<f64, Error>(f64::NAN),
    };
    let way = distance(&exact.weights, &exact.initial)?;
    let mut figures = BTreeMap::from([
        (What::Loss, ratio(loss(ran)? - loss(exact)?, loss(exact)?)),
        (What::Update, ratio(distance(&ran.weights, &exact.weights)?, way)),
        (What::Length, ratio(distance(&ran.weights, &ran.initial)? - way, way)),
        (What::Norm, ratio(norm(&ran.weights)? - norm(&exact.weights)?, way)),
    ]);
    let least = SHARE * norm(exact.trace.gradients.iter().map(|(_, gradient)| gradient))?;
    for (name, expected) in &exact.trace.gradients {
        let found = ran.trace.gradients.iter().find(|(own, _)| own == name);
        let error = match found {
            Some((_, found)) => {
                let (found, expected) =
                    (std::slice::from_ref(found), std::slice::from_ref(expected));
                ratio(distance(found, expected)?, norm(expected)?.max(least))
            }
            None => f64::INFINITY,
        };
        figures.insert(What::Gradient(name.clone()), error);
    }
    Ok(figures)
}
