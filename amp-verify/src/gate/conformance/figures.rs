//! The distances of a precision's first steps from those of 32-true.

use std::{collections::BTreeMap, fmt};

use amp_core::{
    Error, Result,
    tch::{Kind, Tensor},
};

use super::{STEPS, steps::Ran};
use crate::rounding::rounding_of;

/// A gradient whose norm is less than this share of the whole gradient's may consist of rounding errors,
/// as for a bias before a batch norm. Its error is measured relative to this share.
const SHARE: f64 = 1e-2;

/// The compared properties of the steps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// (l − l₃₂)/l₃₂ of the first loss.
    Loss,
    /// ‖g − g₃₂‖/‖g₃₂‖ of a parameter's first gradient.
    Gradient(String),
    /// ‖w − w₃₂‖/‖w₃₂ − w₀‖ of all weights after the steps.
    Update,
    /// ‖w − w₀‖/‖w₃₂ − w₀‖ − 1.
    Length,
    /// (‖w‖ − ‖w₃₂‖)/‖w₃₂ − w₀‖: rounding towards zero and a lost weight decay show here.
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

/// The figures of one run.
pub(super) type Figures = BTreeMap<What, f64>;

/// ‖tensors‖ in f64, one tensor at a time.
fn norm<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<f64> {
    let mut sum = 0.0;
    for tensor in tensors {
        let exact = tensor.f_to_kind(Kind::Double)?;
        sum += exact.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum.sqrt())
}

/// ‖a − b‖ in f64, one tensor at a time.
fn distance(a: &[Tensor], b: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for (a, b) in a.iter().zip(b) {
        let exact = a.f_to_kind(Kind::Double)?;
        let off = exact.f_sub(&b.f_to_device(a.device())?.f_to_kind(Kind::Double)?)?;
        sum += off.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum.sqrt())
}

/// a/b; 0 if a is 0.
fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

/// The error of the weights' figures that f32 itself causes: an optimizer's constants such as 1 − lr·λ
/// are rounded, which moves all weights in the same direction in each step.
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
