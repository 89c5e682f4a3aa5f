//! Histograms of the exponents of a tensor's values. The counts tell how many values would overflow
//! or become zero in a floating-point format, without training in this format.

use std::collections::BTreeMap;

use amp_core::{
    Result,
    precision::is_floating,
    tch::{Kind, Tensor, no_grad},
};
use serde::{Deserialize, Serialize};

use crate::scalars;

/// A floating-point format that is narrower than f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Format {
    /// IEEE binary16.
    #[serde(rename = "float16")]
    F16,
    /// bfloat16.
    #[serde(rename = "bfloat16")]
    Bf16,
    /// FP8 with 4 exponent bits, without infinities (OCP E4M3).
    #[serde(rename = "float8_e4m3fn")]
    E4M3,
    /// FP8 with 5 exponent bits (OCP E5M2).
    #[serde(rename = "float8_e5m2")]
    E5M2,
}

impl Format {
    /// All formats, in the order in which [`Bucket::beyond`] counts them.
    pub const ALL: [Self; 4] = [Self::F16, Self::Bf16, Self::E4M3, Self::E5M2];

    /// Returns the libtorch dtype of this format.
    pub fn kind(self) -> Kind {
        match self {
            Self::F16 => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
            Self::E4M3 => Kind::Float8e4m3fn,
            Self::E5M2 => Kind::Float8e5m2,
        }
    }

    /// Returns the format with this dtype. Returns `None` if the dtype is none of these formats.
    pub fn of(kind: Kind) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.kind() == kind)
    }

    /// Returns the exponent of the largest finite value.
    pub fn max_exponent(self) -> i32 {
        match self {
            Self::F16 | Self::E5M2 => 15,
            Self::Bf16 => 127,
            Self::E4M3 => 8,
        }
    }

    /// Returns the exponent of the smallest normal value.
    pub fn min_exponent(self) -> i32 {
        match self {
            Self::F16 | Self::E5M2 => -14,
            Self::Bf16 => -126,
            Self::E4M3 => -6,
        }
    }

    /// Returns the exponent of the smallest subnormal value.
    pub fn min_subnormal_exponent(self) -> i32 {
        let fraction_bits = match self {
            Self::F16 => 10,
            Self::Bf16 => 7,
            Self::E4M3 => 3,
            Self::E5M2 => 2,
        };
        self.min_exponent() - fraction_bits
    }

    /// Returns the limit between rounding down and overflow, as a significand (from 1 to 2) at the
    /// format's largest exponent: halfway from the largest value to the one that would come next.
    fn last_significand(self) -> f64 {
        match self {
            Self::F16 => 65520.0 / 32768.0,
            Self::Bf16 => 2.0 - 2.0_f64.powi(-8),
            Self::E4M3 => 464.0 / 256.0,
            Self::E5M2 => 61440.0 / 32768.0,
        }
    }

    /// Returns the lowest class of values that overflow in this format at its largest exponent. The
    /// class of a significand is the number of formats in [`Format::ALL`] in which it overflows at
    /// the format's largest exponent.
    fn class(self) -> usize {
        let last = self.last_significand();
        Self::ALL.into_iter().filter(|other| other.last_significand() <= last).count()
    }

    /// Returns whether a value exactly at [`last_significand`](Self::last_significand) is rounded
    /// down to the largest finite value, and does not overflow. Rounding to nearest even rounds it
    /// down if the last bit of the largest finite value is 0, as for 448 in E4M3.
    fn keeps_halfway(self) -> bool {
        self == Self::E4M3
    }
}

/// How many values have a magnitude in `[2^k, 2^(k+1))`, for one exponent k.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bucket {
    /// The number of values with this exponent.
    pub count: u64,
    /// The number of values whose magnitude is exactly 2^k.
    pub powers: u64,
    /// For each format of [`Format::ALL`], how many of these values have a significand that
    /// overflows at the format's largest exponent.
    pub beyond: [u64; 4],
}

/// The values of a tensor, counted by their exponent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Histogram {
    /// The counts for each exponent k. An exponent that no value has is not in the map.
    pub buckets: BTreeMap<i32, Bucket>,
    /// The number of values that are zero.
    pub zeros: u64,
    /// The number of values that are NaN or infinite.
    pub non_finite: u64,
}

/// How many values a cast to a format would change to infinity or to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Losses {
    /// Finite values that become infinite. In E4M3, which has no infinity, they become NaN.
    pub overflow: u64,
    /// Nonzero values that become zero.
    pub underflow: u64,
}

/// The smallest exponent that is counted. It is below the exponent of every f64 number except zero.
const LOWEST: i64 = -1100;
/// The number of counted exponents, from `LOWEST` on. They cover all finite f64 numbers.
const EXPONENTS: i64 = 2200;
/// The number of classes of values with the same exponent. [`Format::class`] explains classes 0 to
/// 4. Class 5 contains the exact powers of 2.
const CLASSES: i64 = 6;
const OF_POWERS: usize = 5;

impl Histogram {
    /// Returns the histogram of a floating-point tensor.
    ///
    /// # Errors
    /// When there is not enough device memory.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        no_grad(|| {
            let values = tensor.f_detach()?.f_flatten(0, -1)?;
            let finite = values.f_isfinite()?;
            let present = values.f_ne(0.0)?.f_logical_and(&finite)?;
            // Counts on the device, because a copy to the host takes longer than a training step.
            let values = values.f_to_kind(Kind::Double)?.f_abs()?;
            let values = values.f_masked_fill(&present.f_logical_not()?, 1.0)?;
            // frexp returns a mantissa in [1/2, 1).
            let (mantissa, exponent) = values.f_frexp()?;
            let significand = mantissa.f_mul_scalar(2.0)?;
            // Computes for each value the index of its counter. Each pair of an exponent and a
            // class has one counter.
            let place = exponent.f_to_kind(Kind::Int64)?.f_sub_scalar(1 + LOWEST)?;
            let mut place = place.f_mul_scalar(CLASSES)?;
            for format in Format::ALL {
                let last = format.last_significand();
                let beyond = match format.keeps_halfway() {
                    true => significand.f_gt(last)?,
                    false => significand.f_ge(last)?,
                };
                let _ = place.f_add_(&beyond)?;
            }
            let powers = significand.f_eq(1.0)?.f_to_kind(Kind::Int64)?;
            let _ = place.f_add_(&powers.f_mul_scalar(OF_POWERS as i64)?)?;
            // The last two counters are for zeros and for values that are not finite.
            let last = EXPONENTS * CLASSES;
            let absent = finite.f_logical_not()?.f_to_kind(Kind::Int64)?.f_add_scalar(last)?;
            let place = place.f_where_self(&present, &absent)?;
            let counts = Vec::<i64>::try_from(place.f_bincount(None::<Tensor>, last + 2)?)?;
            let (counts, absent) = counts.split_at(last as usize);
            let (zeros, non_finite) = (absent[0].cast_unsigned(), absent[1].cast_unsigned());
            let number = |classes: &[i64]| classes.iter().sum::<i64>().cast_unsigned();
            let used = counts.chunks(CLASSES as usize).enumerate();
            let used = used.filter(|(_, classes)| classes.iter().any(|count| *count != 0));
            let buckets = used.map(|(at, classes)| {
                let beyond = Format::ALL.map(|format| number(&classes[format.class()..OF_POWERS]));
                let (count, powers) = (number(classes), number(&classes[OF_POWERS..]));
                ((at as i64 + LOWEST) as i32, Bucket { count, powers, beyond })
            });
            Ok(Self { buckets: buckets.collect(), zeros, non_finite })
        })
    }

    /// Adds the counts of the histogram `other` to this histogram.
    pub fn add(&mut self, other: &Self) {
        for (exponent, bucket) in &other.buckets {
            let own = self.buckets.entry(*exponent).or_default();
            own.count += bucket.count;
            own.powers += bucket.powers;
            for (own, more) in own.beyond.iter_mut().zip(bucket.beyond) {
                *own += more;
            }
        }
        self.zeros += other.zeros;
        self.non_finite += other.non_finite;
    }

    /// Returns the number of finite, nonzero values.
    pub fn nonzero(&self) -> u64 {
        self.buckets.values().map(|bucket| bucket.count).sum()
    }

    /// Returns the largest exponent of a finite value, or `None` if all values are zero.
    pub fn max_exponent(&self) -> Option<i32> {
        self.buckets.keys().next_back().copied()
    }

    /// Returns the largest exponent k for which at most the fraction `share` of the nonzero values
    /// is below 2^k.
    pub fn low_exponent(&self, share: f64) -> Option<i32> {
        let limit = share * self.nonzero() as f64;
        let mut below = 0;
        for (exponent, bucket) in &self.buckets {
            below += bucket.count;
            if below as f64 > limit {
                return Some(*exponent);
            }
        }
        self.max_exponent()
    }

    /// Predicts how many values overflow and how many become zero if all values are multiplied by
    /// 2^`log2_scale` and then cast to `format`. The cast rounds to nearest even and does not
    /// saturate, as libtorch's casts do. The prediction is exact, although it uses only the counts.
    pub fn predict(&self, format: Format, log2_scale: i32) -> Losses {
        let (top, zero) = (format.max_exponent(), format.min_subnormal_exponent() - 1);
        let place = Format::ALL.iter().position(|other| *other == format).unwrap_or_default();
        let mut losses = Losses::default();
        for (exponent, bucket) in &self.buckets {
            let exponent = exponent + log2_scale;
            losses.overflow += match exponent {
                k if k > top => bucket.count,
                k if k == top => bucket.beyond[place],
                _ => 0,
            };
            // Exactly half of the smallest subnormal number is rounded to zero, because zero is
            // even.
            losses.underflow += match exponent {
                k if k < zero => bucket.count,
                k if k == zero => bucket.powers,
                _ => 0,
            };
        }
        losses
    }

    /// Returns how many values become subnormal in `format` after multiplication by 2^`log2_scale`.
    /// Subnormal numbers have fewer significant bits than normal numbers.
    pub fn subnormal(&self, format: Format, log2_scale: i32) -> u64 {
        let below = self.buckets.range(..format.min_exponent() - log2_scale);
        let count: u64 = below.map(|(_, bucket)| bucket.count).sum();
        count - self.predict(format, log2_scale).underflow
    }

    /// Returns the range of loss scales under which the values meet the requirements `options` in
    /// `format`. Returns `None` if all values are zero.
    pub fn window(&self, format: Format, options: WindowOptions) -> Option<Window> {
        let low = self.low_exponent(options.underflow_share)?;
        let high = self.max_exponent()?;
        Some(Window {
            low: format.min_subnormal_exponent() - low,
            high: format.max_exponent() - high - options.headroom_bits,
        })
    }
}

/// Multiplies the tensor by 2^`log2_scale` and casts the result to `format`. Counts the values that
/// overflow in this cast, and the values that become zero.
///
/// # Errors
/// When libtorch cannot cast to this format on the device.
pub fn cast(tensor: &Tensor, format: Format, log2_scale: i32) -> Result<Losses> {
    no_grad(|| {
        let scaled = match log2_scale {
            0 => tensor.f_detach()?,
            _ => tensor.f_mul_scalar(2.0_f64.powi(log2_scale))?,
        };
        let back = scaled.f_to_kind(format.kind())?.f_to_kind(Kind::Float)?;
        losses(tensor, &back)
    })
}

/// Counts the elements that are finite in `before` but not in `after`, and the elements that are
/// nonzero in `before` but zero in `after`.
///
/// # Errors
/// When the shapes of the tensors differ.
pub fn losses(before: &Tensor, after: &Tensor) -> Result<Losses> {
    if !is_floating(before.kind()) {
        return Ok(Losses::default());
    }
    no_grad(|| {
        let lost = after.f_isfinite()?.f_logical_not()?;
        let vanished = after.f_eq(0.0)?.f_logical_and(&before.f_ne(0.0)?)?;
        let overflown = lost.f_logical_and(&before.f_isfinite()?)?;
        let [overflow, underflow] =
            scalars::read_all([overflown.f_sum(Kind::Int64)?, vanished.f_sum(Kind::Int64)?])?;
        Ok(Losses { overflow: overflow as u64, underflow: underflow as u64 })
    })
}

/// The requirements for a safe loss scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WindowOptions {
    /// The fraction of a tensor's nonzero values that may become zero.
    pub underflow_share: f64,
    /// How many powers of 2 the largest value must stay below the format's largest exponent.
    pub headroom_bits: i32,
}

impl Default for WindowOptions {
    fn default() -> Self {
        Self { underflow_share: 0.05, headroom_bits: 1 }
    }
}

/// The safe loss scales, from 2^low to 2^high: low = e_min − q_low and high = e_max − q_max −
/// headroom. Here e_min is the exponent of the format's smallest subnormal number, and e_max is the
/// format's largest exponent. q_max is the largest exponent of the values. q_low is the largest
/// exponent for which at most the permitted fraction of the values is below 2^q_low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The lower end, as an exponent of 2. With a smaller scale, too many values become zero.
    pub low: i32,
    /// The upper end, as an exponent of 2. With a larger scale, values may overflow.
    pub high: i32,
}

impl Window {
    /// Returns whether there is no safe loss scale.
    pub fn is_empty(self) -> bool {
        self.low > self.high
    }

    /// Returns how far the scale 2^`log2_scale` is from the nearer end of this range, in powers of
    /// 2. The result is negative if the scale is outside.
    pub fn margin_bits(self, log2_scale: i32) -> i32 {
        (log2_scale - self.low).min(self.high - log2_scale)
    }

    /// Returns the loss scales that are both in this range and in `other`.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self { low: self.low.max(other.low), high: self.high.min(other.high) }
    }
}

/// The loss scales that are safe for several layers at once. If there are none, `lowest` and
/// `highest` name two layers that need different scales.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonWindow {
    /// The loss scales that are safe for all layers.
    pub window: Window,
    /// The layer whose values become zero first if the loss scale falls.
    pub lowest: String,
    /// The layer that needs the smallest loss scale: if the scale rises, its values overflow first.
    pub highest: String,
}

impl CommonWindow {
    /// Intersects the ranges of safe loss scales of layers, which are given with the layers' names.
    /// Returns `None` if there are no layers.
    pub fn of<'a>(windows: impl IntoIterator<Item = (&'a str, Window)>) -> Option<Self> {
        let mut common: Option<Self> = None;
        for (name, window) in windows {
            let Some(common) = &mut common else {
                let (lowest, highest) = (name.to_owned(), name.to_owned());
                common = Some(Self { window, lowest, highest });
                continue;
            };
            if window.low > common.window.low {
                name.clone_into(&mut common.lowest);
            }
            if window.high < common.window.high {
                name.clone_into(&mut common.highest);
            }
            common.window = common.window.intersect(window);
        }
        common
    }

    /// Returns the names of two layers if no scale is safe for all layers. The first needs a larger
    /// scale than the second allows.
    pub fn conflict(&self) -> Option<(&str, &str)> {
        self.window.is_empty().then_some((self.lowest.as_str(), self.highest.as_str()))
    }
}
