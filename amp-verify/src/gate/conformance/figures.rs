//! Measures how far the first steps under a precision are from the same steps under 32-true.

use std::{collections::BTreeMap, fmt};

use amp_core::{
    Result,
    tch::{Kind, Tensor, no_grad},
};

use super::{STEPS, steps::Ran};
use crate::{
    rounding::rounding_of,
    scalars::{read, square, square_of_difference},
};

/// The difference between a parameter's gradients in two runs is divided by the norm of the
/// gradient under 32-true, but by at least this fraction of the norm of all gradients together. A
/// gradient with a smaller norm may consist of rounding errors alone, for example that of a bias
/// before a batch norm.
const SHARE: f64 = 1e-2;

/// The measures of difference between the first steps of two runs. In the formulas, l is the loss,
/// g a gradient, w the weights after the steps, and u the update of the weights in the run under the
/// precision. l₃₂, g₃₂, w₃₂ and u₃₂ are those of the run under 32-true. The update is the difference
/// between the weights after the steps and those before the first step. The weights before the first
/// step are those that the run stores, so rounding them to 16 bits is no part of the update.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// (l − l₃₂)/l₃₂, where l is the first loss.
    Loss,
    /// ‖g − g₃₂‖/‖g₃₂‖, where g is the first gradient of the named parameter.
    Gradient(String),
    /// ‖u − u₃₂‖/‖u₃₂‖. This measure and the next two leave out [`noisy`] weights.
    Update,
    /// ‖u‖/‖u₃₂‖ − 1: the relative difference between the norms of the two updates.
    Length,
    /// (‖w‖ − ‖w₃₂‖)/‖u₃₂‖. This measure reveals rounding towards zero, and a missing weight
    /// decay.
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

/// The measured differences between the first steps of a run and those of the run under 32-true.
pub(super) type Figures = BTreeMap<What, f64>;

/// Returns the square roots of scalar tensors. Copies all tensors from the device in one transfer.
fn roots(squares: impl Iterator<Item = Result<Tensor>>) -> Result<Vec<f64>> {
    let squares = squares.collect::<Result<Vec<_>>>()?;
    Ok(read(&squares)?.into_iter().map(f64::sqrt).collect())
}

/// Computes the norm of each tensor in f64, one tensor at a time.
fn norms<'t>(tensors: impl IntoIterator<Item = &'t Tensor>) -> Result<Vec<f64>> {
    roots(tensors.into_iter().map(square))
}

/// Computes ‖a − b‖ of each pair in f64, one pair at a time.
fn distances<'t>(pairs: impl IntoIterator<Item = (&'t Tensor, &'t Tensor)>) -> Result<Vec<f64>> {
    roots(pairs.into_iter().map(|(a, b)| square_of_difference(a, b)))
}

/// Returns the first gradients of a run by the names of their parameters.
fn by_name(ran: &Ran) -> BTreeMap<&str, &Tensor> {
    ran.trace.gradients.iter().map(|(name, gradient)| (name.as_str(), gradient)).collect()
}

/// Computes the norm of several tensors together from the norms of the single tensors.
fn whole(parts: impl IntoIterator<Item = f64>) -> f64 {
    parts.into_iter().map(|part| part * part).sum::<f64>().sqrt()
}

/// Returns a/b, or 0 if a is 0.
fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

/// For each parameter, by name, a mask of the weights that are left out of comparisons.
pub(super) type Masks = BTreeMap<String, Tensor>;

/// Returns a mask of the weights whose first gradient is only rounding error: the gradients g in
/// the run `exact` and g' in the run `rounded`, which emulates the precision's rounding, satisfy
/// |g' − g| ≥ |g|. An example is the bias of attention's keys, for which g is 0. Adam normalizes
/// gradients by their size, so it changes these weights as much as others, but in random
/// directions. They say nothing about the precision and are left out of comparisons.
pub(super) fn noisy(exact: &Ran, rounded: &Ran) -> Result<Masks> {
    let found = by_name(rounded);
    let mut masks = Masks::new();
    for (name, own) in &exact.trace.gradients {
        let Some(other) = found.get(name.as_str()) else { continue };
        let mask = no_grad(|| -> Result<Tensor> {
            let away = other.f_sub(own)?.f_abs()?;
            // A weight whose gradient is infinite or NaN in the emulated run is not masked: this is
            // not a rounding error.
            let differs = away.f_gt(0.0)?.f_logical_and(&away.f_isfinite()?)?;
            Ok(away.f_ge_tensor(&own.f_abs()?)?.f_logical_and(&differs)?)
        })?;
        masks.insert(name.clone(), mask);
    }
    Ok(masks)
}

/// The run under 32-true, and the norms by which the differences of other runs from it are divided.
pub(super) struct Exact<'a> {
    ran: &'a Ran,
    /// For each parameter, in the order of `Ran::weights`, a mask of the weights that are left out
    /// when weights are compared.
    masks: Vec<Option<Tensor>>,
    loss: f64,
    /// The norm of the first gradient of each parameter.
    gradients: Vec<f64>,
    /// The norm of all weights after the steps.
    weights: f64,
    /// The norm of the update of the weights.
    way: f64,
}

impl<'a> Exact<'a> {
    /// Prepares comparisons with the run `ran`. Comparisons of weights leave out those in `masks`.
    /// If these are the only weights that change in the run, no weight is left out.
    pub(super) fn new(ran: &'a Ran, masks: &Masks) -> Result<Self> {
        let of_names = ran.names.iter().map(|name| masks.get(name).map(Tensor::shallow_clone));
        let mut exact = Self {
            ran,
            masks: of_names.collect(),
            loss: loss(ran)?,
            gradients: norms(ran.trace.gradients.iter().map(|(_, gradient)| gradient))?,
            weights: 0.0,
            way: 0.0,
        };
        exact.way = exact.norm(&ran.update)?;
        if exact.way == 0.0 && !masks.is_empty() {
            return Self::new(ran, &Masks::new());
        }
        exact.weights = exact.norm(&ran.weights)?;
        Ok(exact)
    }

    /// Returns the tensor with the index `at`, with zeros in place of the weights that are left out of
    /// comparisons. `tensors` are the weights or their update.
    fn measured(&self, tensors: &[Tensor], at: usize) -> Result<Tensor> {
        no_grad(|| match &self.masks[at] {
            Some(mask) => Ok(tensors[at].f_masked_fill(mask, 0.0)?),
            None => Ok(tensors[at].shallow_clone()),
        })
    }

    /// Computes the norm of all compared weights, or of their update, one tensor at a time.
    fn norm(&self, tensors: &[Tensor]) -> Result<f64> {
        let squares = (0..tensors.len()).map(|at| square(&self.measured(tensors, at)?));
        Ok(whole(roots(squares)?))
    }

    /// Computes ‖a − b‖ of all compared weights together, one pair of tensors at a time.
    fn distance(&self, a: &[Tensor], b: &[Tensor]) -> Result<f64> {
        let squares = (0..a.len())
            .map(|at| square_of_difference(&self.measured(a, at)?, &self.measured(b, at)?));
        Ok(whole(roots(squares)?))
    }

    /// Returns how much the weights of two correct runs may differ because the optimizer's
    /// constants are rounded to f32 (for example 1 − lr·λ, where λ is the weight decay), divided by
    /// the norm of the weights' update. Such a rounded constant scales all weights by the same
    /// wrong factor in each step.
    pub(super) fn of_constants(&self) -> f64 {
        ratio(STEPS as f64 * rounding_of(Kind::Float) * self.weights, self.way)
    }

    /// Measures how far the run `ran` is from the run under 32-true.
    pub(super) fn compare(&self, ran: &Ran) -> Result<Figures> {
        let Self { ran: exact, way, .. } = *self;
        let mut figures = BTreeMap::from([
            (What::Loss, ratio(loss(ran)? - self.loss, self.loss)),
            (What::Update, ratio(self.distance(&ran.update, &exact.update)?, way)),
            (What::Length, ratio(self.norm(&ran.update)? - way, way)),
            (What::Norm, ratio(self.norm(&ran.weights)? - self.weights, way)),
        ]);
        let least = SHARE * whole(self.gradients.iter().copied());
        let found = by_name(ran);
        let expected = || exact.trace.gradients.iter();
        let pairs = expected().filter_map(|(name, own)| Some((*found.get(name.as_str())?, own)));
        let mut away = distances(pairs)?.into_iter();
        for ((name, _), size) in expected().zip(&self.gradients) {
            let error = match found.contains_key(name.as_str()).then(|| away.next()).flatten() {
                Some(away) => ratio(away, size.max(least)),
                None => f64::INFINITY,
            };
            figures.insert(What::Gradient(name.clone()), error);
        }
        Ok(figures)
    }
}

/// Returns the first loss, or NaN if there is none.
fn loss(ran: &Ran) -> Result<f64> {
    ran.trace.loss.as_ref().map_or(Ok(f64::NAN), |loss| Ok(loss.f_double_value(&[])?))
}
