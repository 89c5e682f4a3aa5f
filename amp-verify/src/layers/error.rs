//! Statistics of the errors in a tensor. An error is the difference between a value and the exact
//! value.

use amp_core::{
    Result,
    tch::{Kind, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::scalars;

/// Two means of the errors of a tensor: `magnitude` shows whether the errors shrink or enlarge the
/// values, and `shift` shows whether they make the values lower or higher. Each mean has a z value:
/// the mean divided by its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bias {
    /// The mean of the errors, each multiplied by the sign of the exact value. It is negative if
    /// the errors make values smaller in magnitude, as truncation does.
    pub magnitude: f64,
    /// `magnitude` divided by its standard error. If there is no bias, this is between about −3 and
    /// 3.
    pub magnitude_z: f64,
    /// The mean of the errors, with their signs.
    pub shift: f64,
    /// `shift` divided by its standard error.
    pub shift_z: f64,
}

impl Bias {
    /// Returns the z value with the larger magnitude, including its sign.
    pub fn z(self) -> f64 {
        if self.shift_z.abs() > self.magnitude_z.abs() { self.shift_z } else { self.magnitude_z }
    }
}

/// How the bias of activations changes from layer to layer: the slope of a linear fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// The slope of a least-squares line through the layers, in the order in which they run. The
    /// line is fitted to the relative change of magnitude of each layer's output, Σ error × sign /
    /// Σ |exact|, where sign is the sign of the exact value.
    pub per_layer: f64,
    /// The slope divided by its standard error. `None` if the line fits exactly.
    pub t: Option<f64>,
}

/// Returns the root mean square of the elements. Returns `None` if an element is not finite.
///
/// # Errors
/// When there is not enough device memory.
pub fn rms(tensor: &Tensor) -> Result<Option<f64>> {
    Ok(roots(&[mean_square(tensor)?])?.pop().flatten())
}

/// Returns the root mean square of `found` − `exact`. Returns `None` if an element is not finite.
///
/// # Errors
/// When the shapes of the two tensors differ.
pub fn rmse(found: &Tensor, exact: &Tensor) -> Result<Option<f64>> {
    rms(&difference(found, exact)?)
}

/// Computes the mean of the squared elements, on the tensor's device.
pub(super) fn mean_square(tensor: &Tensor) -> Result<Tensor> {
    if tensor.numel() == 0 {
        return Ok(Tensor::f_zeros([0_i64; 0], (Kind::Double, tensor.device()))?);
    }
    Ok(tensor.f_to_kind(Kind::Double)?.f_square()?.f_mean(Kind::Double)?)
}

/// Computes the mean of the squared differences between `found` and `exact`, on the tensors'
/// device.
pub(super) fn mean_square_error(found: &Tensor, exact: &Tensor) -> Result<Tensor> {
    mean_square(&difference(found, exact)?)
}

/// Computes the square roots of mean squares. A root is `None` if its mean square is not finite.
pub(super) fn roots(squares: &[Tensor]) -> Result<Vec<Option<f64>>> {
    let root = |square: f64| Some(square.sqrt()).filter(|root| root.is_finite());
    Ok(scalars::read(squares)?.into_iter().map(root).collect())
}

/// Computes the bias (the mean) of the errors in `found`. Returns `None` if an error is not finite.
///
/// The errors of one example are correlated, and so are the errors of one feature, for example
/// because they depend on the same rounded weight. The standard error takes this into account
/// (two-way clustering, Cameron, Gelbach and Miller 2011). The feature is dimension 1 of `[N, C, H,
/// W]`, and the last dimension of any other shape.
///
/// # Errors
/// When the shapes of the two tensors differ.
pub fn bias(found: &Tensor, exact: &Tensor) -> Result<Option<Bias>> {
    let error = difference(found, exact)?;
    let signed = error.f_mul(&exact.f_to_kind(Kind::Double)?.f_sign()?)?;
    let (mut sums, of_error) = (sums(&signed)?, sums(&error)?);
    let count = sums.len();
    sums.extend(of_error);
    let values = scalars::read(&sums)?;
    let (of_signed, of_error) = values.split_at(count);
    // The last sum is the sum of the squares of all errors. It is not finite if an error is not
    // finite.
    if of_error.last().is_some_and(|squares| !squares.is_finite()) {
        return Ok(None);
    }
    let count = error.numel() as f64;
    let (magnitude, magnitude_z) = mean_and_z(of_signed, count);
    let (shift, shift_z) = mean_and_z(of_error, count);
    Ok(Some(Bias { magnitude, magnitude_z, shift, shift_z }))
}

/// Computes on the device the sums from which a mean and its standard error follow. The first one
/// is the sum of all values, and the last one is the sum of their squares. If there are several
/// examples, two sums are between them: Σ (sum over an example)², and Σ (sum over a feature)².
fn sums(values: &Tensor) -> Result<Vec<Tensor>> {
    if values.numel() == 0 {
        return Ok(Vec::new());
    }
    let squares =
        |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_square()?.f_sum(Kind::Double)?) };
    let mut sums = vec![values.f_sum(Kind::Double)?];
    let size = values.size();
    let feature = if size.len() == 4 { 1 } else { size.len().saturating_sub(1) };
    // z is the mean error divided by its standard error. If a layer has only one feature, |z| is at
    // most 1, so no systematic error is reported. This is intended: all errors of the layer come
    // from the same rounded weights, so their mean may differ from 0 by chance.
    if size.len() > 1 && size[0] > 1 {
        for dim in [0, feature] {
            let others: Vec<i64> =
                (0..size.len()).filter(|at| *at != dim).map(|at| at as i64).collect();
            sums.push(squares(&values.f_sum_dim_intlist(others, false, Kind::Double)?)?);
        }
    }
    sums.push(squares(values)?);
    Ok(sums)
}

/// Computes the mean of values from their sums, and z: the mean divided by its standard error. The
/// standard error is computed as if the true mean were zero.
fn mean_and_z(sums: &[f64], count: f64) -> (f64, f64) {
    let (sum, variance) = match *sums {
        [sum, examples, features, single] => (sum, (examples + features - single).max(single)),
        [sum, single] => (sum, single),
        _ => return (0.0, 0.0),
    };
    let (mean, deviation) = (sum / count, variance.sqrt() / count);
    (mean, if deviation > 0.0 { mean / deviation } else { 0.0 })
}

/// Computes the relative change of magnitude from `exact` to `found`, Σ error × sign / Σ |exact|,
/// where sign is the sign of the exact value. Returns `None` if the result is not finite.
///
/// # Errors
/// When the shapes of the two tensors differ.
pub fn relative_change(found: &Tensor, exact: &Tensor) -> Result<Option<f64>> {
    let error = difference(found, exact)?;
    let exact = exact.f_to_kind(Kind::Double)?;
    let [error, size] = scalars::read_all([
        error.f_mul(&exact.f_sign()?)?.f_sum(Kind::Double)?,
        exact.f_abs()?.f_sum(Kind::Double)?,
    ])?;
    let change = error / size;
    Ok(change.is_finite().then_some(change))
}

/// Fits a line to `changes`, which has one value for each layer, and returns the slope of the line.
/// Returns `None` if there are fewer than three layers.
pub fn growth(changes: &[f64]) -> Option<Growth> {
    let n = changes.len() as f64;
    if changes.len() < 3 {
        return None;
    }
    let (middle, mean) = ((n - 1.0) / 2.0, changes.iter().sum::<f64>() / n);
    let places = || (0..changes.len()).map(|at| at as f64 - middle);
    let spread: f64 = places().map(|x| x * x).sum();
    let slope = places().zip(changes).map(|(x, y)| x * (y - mean)).sum::<f64>() / spread;
    let residual: f64 = places().zip(changes).map(|(x, y)| (y - mean - slope * x).powi(2)).sum();
    let deviation = (residual / (n - 2.0) / spread).sqrt();
    let t = slope / deviation;
    Some(Growth { per_layer: slope, t: t.is_finite().then_some(t) })
}

fn difference(found: &Tensor, exact: &Tensor) -> Result<Tensor> {
    Ok(found.f_to_kind(Kind::Double)?.f_sub(&exact.f_to_kind(Kind::Double)?)?)
}
