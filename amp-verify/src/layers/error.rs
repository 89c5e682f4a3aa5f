//! Statistics of a tensor's error.

use amp_core::{
    Result,
    tch::{Kind, Tensor},
};
use serde::{Deserialize, Serialize};

/// The mean of signed errors, compared with the value expected by chance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bias {
    /// The mean of error × sign of the exact value. It is negative if values shrink, for example by
    /// truncation.
    pub magnitude: f64,
    /// `magnitude` divided by its standard error. By chance it is within about ±3.
    pub magnitude_z: f64,
    /// The mean of the error.
    pub shift: f64,
    /// `shift` divided by its standard error.
    pub shift_z: f64,
}

impl Bias {
    /// The larger of the two z values, with its sign.
    pub fn z(self) -> f64 {
        if self.shift_z.abs() > self.magnitude_z.abs() { self.shift_z } else { self.magnitude_z }
    }
}

/// How the bias changes with depth: a linear fit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// The slope: the relative change of magnitude (Σ error × sign / Σ |exact|) per layer, by least
    /// squares over the layers in the order in which they run.
    pub per_layer: f64,
    /// The slope divided by its standard error; `None` if the fit is exact.
    pub t: Option<f64>,
}

/// The root mean square; `None` if a value is not finite.
///
/// # Errors
/// When there is not enough device memory.
pub fn rms(tensor: &Tensor) -> Result<Option<f64>> {
    if tensor.numel() == 0 {
        return Ok(Some(0.0));
    }
    let squares = tensor.f_to_kind(Kind::Double)?.f_square()?;
    let value = squares.f_mean(Kind::Double)?.f_double_value(&[])?.sqrt();
    Ok(value.is_finite().then_some(value))
}

/// The root mean square of the difference; `None` if a value is not finite.
///
/// # Errors
/// When the shapes differ.
pub fn rmse(found: &Tensor, exact: &Tensor) -> Result<Option<f64>> {
    rms(&difference(found, exact)?)
}

/// Computes the bias of `found`; returns `None` if a value is not finite.
///
/// Errors of one example share causes, and so do errors of one feature (dimension 1 of `[N, C, H,
/// W]`, otherwise the last), for example a rounded weight. The standard error accounts for both
/// (two-way clustering, Cameron, Gelbach and Miller 2011).
///
/// # Errors
/// When the shapes differ.
pub fn bias(found: &Tensor, exact: &Tensor) -> Result<Option<Bias>> {
    let error = difference(found, exact)?;
    if rms(&error)?.is_none() {
        return Ok(None);
    }
    let signed = error.f_mul(&exact.f_to_kind(Kind::Double)?.f_sign()?)?;
    let (magnitude, magnitude_z) = mean_and_z(&signed)?;
    let (shift, shift_z) = mean_and_z(&error)?;
    Ok(Some(Bias { magnitude, magnitude_z, shift, shift_z }))
}

/// The mean, and the mean divided by its standard error under the hypothesis that the mean is zero.
fn mean_and_z(values: &Tensor) -> Result<(f64, f64)> {
    let count = values.numel();
    if count == 0 {
        return Ok((0.0, 0.0));
    }
    let number = |tensor: Tensor| -> Result<f64> { Ok(tensor.f_double_value(&[])?) };
    let squares = |tensor: &Tensor| number(tensor.f_square()?.f_sum(Kind::Double)?);
    let mean = number(values.f_mean(Kind::Double)?)?;
    let single = squares(values)?;
    let size = values.size();
    let feature = if size.len() == 4 { 1 } else { size.len().saturating_sub(1) };
    // If a layer has one feature, all its errors share the same rounded weights, which alone may
    // shift their mean. z is 1 then.
    let variance = if size.len() < 2 || size[0] < 2 {
        single
    } else {
        let sums = |dim: usize| -> Result<f64> {
            let others: Vec<i64> =
                (0..size.len()).filter(|at| *at != dim).map(|at| at as i64).collect();
            squares(&values.f_sum_dim_intlist(others, false, Kind::Double)?)
        };
        (sums(0)? + sums(feature)? - single).max(single)
    };
    let deviation = variance.sqrt() / count as f64;
    Ok((mean, if deviation > 0.0 { mean / deviation } else { 0.0 }))
}

/// Σ error × sign / Σ |exact|; `None` if that is NaN.
///
/// # Errors
/// When the shapes differ.
pub fn relative_change(found: &Tensor, exact: &Tensor) -> Result<Option<f64>> {
    let error = difference(found, exact)?;
    let exact = exact.f_to_kind(Kind::Double)?;
    let sum =
        |tensor: Tensor| -> Result<f64> { Ok(tensor.f_sum(Kind::Double)?.f_double_value(&[])?) };
    let change = sum(error.f_mul(&exact.f_sign()?)?)? / sum(exact.f_abs()?)?;
    Ok(change.is_finite().then_some(change))
}

/// The least-squares line through `changes` over their indices; `None` for fewer than three.
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
