use tch::Tensor;

use crate::{
    Error, Result,
    data::{Batch, MapDataset, SharedTensor},
    random::Rng,
};

/// A data set of windows of time series. A window consists of past values (the context), from which
/// a model forecasts, and the future values after them (the horizon). All values of a window belong
/// to the same series, and to the same side of a [split](Self::split).
///
/// An example is a [`Batch`]. If the series has the shape `[T, …]`, `input` is the context, of
/// shape `[context, …]`, and `target` is the horizon, of shape `[horizon, …]`.
///
/// ```
/// use amp_core::{Result, data::{MapDataset, Windows}, random::Rng, tch::Tensor};
///
/// # fn main() -> Result<()> {
/// let days = |count| Tensor::arange(count, (amp_core::tch::Kind::Float, amp_core::tch::Device::Cpu));
/// let (train, val) = Windows::new(vec![days(100), days(50)], 7, 2)?.split(0.8)?;
/// // Training: (80 - 9 + 1) + (40 - 9 + 1) windows. Validation: (20 - 9 + 1) + (10 - 9 + 1).
/// assert_eq!((train.len(), val.len()), (104, 14));
/// let first = val.get(0, &mut Rng::with_seed(0))?;
/// assert_eq!(first.input.double_value(&[0]), 80.0);
/// assert_eq!(first.target.double_value(&[0]), 87.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Windows {
    series: Vec<Series>,
    context: i64,
    horizon: i64,
    stride: i64,
}

#[derive(Debug)]
struct Series {
    values: SharedTensor,
    length: i64,
}

impl Windows {
    /// Creates the windows of these series. A series has the shape `[T, …]`. A window of `context`
    /// + `horizon` values begins at every time step at which it fits into the series.
    ///
    /// # Errors
    /// When a series is a scalar, or no series has a window.
    pub fn new(series: Vec<Tensor>, context: i64, horizon: i64) -> Result<Self> {
        if context < 1 || horizon < 1 {
            return Err(Error::config(format!(
                "windows of context {context} and horizon {horizon}: both must be at least 1"
            )));
        }
        let own = |(at, values): (usize, Tensor)| match values.size().first() {
            Some(&length) => Ok(Series { values: values.into(), length }),
            None => Err(Error::config(format!(
                "series {at} is a scalar: give a tensor [T, …] of T time steps"
            ))),
        };
        let series = series.into_iter().enumerate().map(own).collect::<Result<_>>()?;
        Self { series, context, horizon, stride: 1 }.checked()
    }

    /// Sets the number of time steps between the starts of consecutive windows.
    ///
    /// # Errors
    /// When the stride is below 1.
    pub fn stride(mut self, stride: i64) -> Result<Self> {
        if stride < 1 {
            return Err(Error::config(format!("stride {stride}: it must be at least 1")));
        }
        self.stride = stride;
        Ok(self)
    }

    /// Splits each series into two parts. The first part has the fraction `fraction` of the values.
    /// Returns the windows of the first parts, and the windows of the second parts. No value occurs
    /// in both results.
    ///
    /// # Errors
    /// When the fraction is not between 0 and 1, or one side of the split has no window.
    pub fn split(&self, fraction: f64) -> Result<(Self, Self)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::config(format!(
                "the series cannot be split at {fraction}: give a fraction between 0 and 1"
            )));
        }
        let side = |before: bool| {
            let cut = |series: &Series| -> Result<Series> {
                let at = (series.length as f64 * fraction) as i64;
                let (start, length) = if before { (0, at) } else { (at, series.length - at) };
                let values = series.values.get().f_narrow(0, start, length)?.into();
                Ok(Series { values, length })
            };
            let series = self.series.iter().map(cut).collect::<Result<_>>()?;
            Self { series, ..*self }.checked()
        };
        Ok((side(true)?, side(false)?))
    }

    fn checked(self) -> Result<Self> {
        if self.len() == 0 {
            let longest = self.series.iter().map(|series| series.length).max().unwrap_or_default();
            let (context, horizon) = (self.context, self.horizon);
            return Err(Error::config(format!(
                "no window of context {context} and horizon {horizon} fits: the longest series has \
                 {longest} values"
            )));
        }
        Ok(self)
    }

    fn windows_of(&self, series: &Series) -> i64 {
        let last = series.length - self.context - self.horizon;
        if last < 0 { 0 } else { last / self.stride + 1 }
    }
}

impl MapDataset for Windows {
    type Example = Batch;

    fn len(&self) -> i64 {
        self.series.iter().map(|series| self.windows_of(series)).sum()
    }

    fn get(&self, index: i64, _: &mut Rng) -> Result<Batch> {
        let mut at = index;
        for series in &self.series {
            let windows = self.windows_of(series);
            if at < windows {
                let values = series.values.get();
                let start = at * self.stride;
                let input = values.f_narrow(0, start, self.context)?;
                let target = values.f_narrow(0, start + self.context, self.horizon)?;
                return Ok(Batch { input, target });
            }
            at -= windows;
        }
        Err(Error::config(format!("there is no window {index} in a set of {} windows", self.len())))
    }
}
