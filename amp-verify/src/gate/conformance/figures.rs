//! How far the steps of a precision were from those of 32-true.

use amp_core::{
    Error, Result,
    tch::{Kind, Tensor, no_grad},
};
use serde::{Deserialize, Serialize};

use super::steps::Ran;

/// Parameters with less than this share of the gradient's norm are rounding alone, as a bias
/// before a batch norm is.
const SHARE: f64 = 1e-2;

/// How far the steps were from the 32-true ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The largest relative error of a parameter's first gradient, ‖g − g₃₂‖/‖g₃₂‖.
    pub gradient_error: f64,
    /// The parameter it is of.
    pub gradient_parameter: String,
    /// The first loss's relative error.
    pub loss_error: f64,
    /// The distance of the weights after the steps over how far 32-true went,
    /// ‖w − w₃₂‖/‖w₃₂ − w₀‖.
    pub update_error: f64,
    /// The relative difference of the ways gone, ‖w − w₀‖/‖w₃₂ − w₀‖ − 1.
    pub update_bias: f64,
    /// The relative difference of the weights' norms, (‖w‖ − ‖w₃₂‖)/‖w₃₂ − w₀‖: rounding towards
    /// zero and a lost weight decay show here.
    pub norm_bias: f64,
}

fn norm(tensors: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for tensor in tensors {
        sum += tensor.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum.sqrt())
}

fn minus(a: &[Tensor], b: &[Tensor]) -> Result<Vec<Tensor>> {
    no_grad(|| a.iter().zip(b).map(|(a, b)| Ok(a.f_sub(b)?)).collect())
}

/// ‖a − b‖/‖b − from‖.
fn relative(a: &[Tensor], b: &[Tensor], from: &[Tensor]) -> Result<f64> {
    let distance = norm(&minus(a, b)?)?;
    Ok(if distance == 0.0 { 0.0 } else { distance / norm(&minus(b, from)?)? })
}

pub(super) fn compare(exact: &Ran, ran: &Ran) -> Result<Figures> {
    let all: Vec<Tensor> =
        exact.trace.gradients.iter().map(|(_, gradient)| gradient.shallow_clone()).collect();
    let whole = norm(&all)?;
    let (mut gradient_error, mut gradient_parameter) = (0.0_f64, String::new());
    for (name, expected) in &exact.trace.gradients {
        let size = norm(&[expected.shallow_clone()])?;
        if size < SHARE * whole {
            continue;
        }
        let found = ran.trace.gradients.iter().find(|(own, _)| own == name);
        let error = match found {
            Some((_, found)) => norm(&[found.f_sub(expected)?])? / size,
            None => f64::INFINITY,
        };
        // NaN is the largest of all.
        if error.is_nan() || error > gradient_error {
            (gradient_error, gradient_parameter) = (error, name.clone());
        }
        if gradient_error.is_nan() {
            break;
        }
    }
    let loss = |run: &Ran| match &run.trace.loss {
        Some(loss) => Ok(loss.f_double_value(&[])?),
        None => Ok::<f64, Error>(f64::NAN),
    };
    let way = norm(&minus(&exact.weights, &exact.initial)?)?;
    Ok(Figures {
        gradient_error,
        gradient_parameter,
        loss_error: (loss(ran)? - loss(exact)?).abs() / loss(exact)?.abs(),
        update_error: relative(&ran.weights, &exact.weights, &exact.initial)?,
        update_bias: norm(&minus(&ran.weights, &ran.initial)?)? / way - 1.0,
        norm_bias: (norm(&ran.weights)? - norm(&exact.weights)?) / way,
    })
}
