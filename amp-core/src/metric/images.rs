//! Metrics of images.

use tch::Tensor;

use super::{
    Metric, MetricState, Mode, Reduction,
    regression::{doubles, sum_and_count},
};
use crate::{
    Result,
    loss::{elementwise, misfit},
    precision::{AutocastGuard, f32_or_f64},
};

/// The peak signal-to-noise ratio in decibels, 10 log₁₀(R² / MSE), where R is `data_range` and the
/// mean squared error is over all elements of all batches. Output and target are floating-point
/// tensors of the same shape.
#[derive(Debug, Clone, Copy)]
pub struct Psnr {
    /// R, the difference between the largest and the smallest value that an element can have. The
    /// default is 1.
    pub data_range: f64,
}

impl Default for Psnr {
    fn default() -> Self {
        Self { data_range: 1.0 }
    }
}

impl Metric for Psnr {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let (x, y) = doubles("psnr", output, target)?;
        has_range("psnr", self.data_range, output, target)?;
        MetricState::sum(&sum_and_count(&x.f_sub(&y)?.f_square()?)?)
    }

    fn reduction(&self) -> Reduction {
        let square = self.data_range * self.data_range;
        Reduction::of(move |state| match state {
            [counts] => {
                let error = counts.f_get(0)?.f_div(&counts.f_get(1)?)?;
                Ok(error.f_reciprocal()?.f_mul_scalar(square)?.f_log10()?.f_mul_scalar(10.0)?)
            }
            _ => Err(super::other_state(1, state)),
        })
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

/// The structural similarity (Wang et al. 2004) with a Gaussian window of 11 × 11, σ = 1.5, k₁ =
/// 0.01 and k₂ = 0.03. Images are padded by reflection. The mean is over positions, channels and
/// images. Output and target are floating-point tensors of shape `[N, C, H, W]`, where H and W are
/// at least 6.
#[derive(Debug, Clone, Copy)]
pub struct Ssim {
    /// The difference between the largest and the smallest value that an element can have. The
    /// default is 1.
    pub data_range: f64,
}

impl Default for Ssim {
    fn default() -> Self {
        Self { data_range: 1.0 }
    }
}

const WINDOW: i64 = 11;
const EDGE: i64 = WINDOW / 2;

impl Metric for Ssim {
    fn update(&self, output: &Tensor, target: &Tensor) -> Result<MetricState> {
        let (x, y) = elementwise("ssim", output, target)?;
        has_range("ssim", self.data_range, output, target)?;
        let sizes = x.size();
        if sizes.len() != 4 || sizes[2] <= EDGE || sizes[3] <= EDGE {
            let why = "images must be [N, C, H, W], with H and W at least 6";
            return Err(misfit("ssim", output, target, why));
        }
        let _off = AutocastGuard::off(x.device())?;
        // Each channel is processed as a separate image, in at least f32.
        let kind = f32_or_f64(x.kind());
        let images = |of: &Tensor| {
            let each = of.f_to_kind(kind)?.f_reshape([-1, 1, sizes[2], sizes[3]])?;
            each.f_reflection_pad2d([EDGE; 4])
        };
        let (x, y) = (images(&x)?, images(&y)?);
        let places = Tensor::f_arange(WINDOW, (kind, x.device()))?.f_sub_scalar(EDGE)?;
        let bell = places.f_square()?.f_div_scalar(-2.0 * 1.5 * 1.5)?.f_exp()?;
        let bell = bell.f_div(&bell.f_sum(kind)?)?;
        let (column, row) = (bell.f_reshape([1, 1, -1, 1])?, bell.f_reshape([1, 1, 1, -1])?);
        let smooth = |of: &Tensor| {
            let none = None::<Tensor>;
            let of = of.f_conv2d(&column, none, [1, 1], [0, 0], [1, 1], 1)?;
            of.f_conv2d(&row, None::<Tensor>, [1, 1], [0, 0], [1, 1], 1)
        };
        let [c1, c2] = [0.01, 0.03].map(|k: f64| (k * self.data_range).powi(2));
        let (mx, my) = (smooth(&x)?, smooth(&y)?);
        let (mxx, myy, mxy) = (mx.f_square()?, my.f_square()?, mx.f_mul(&my)?);
        let vx = smooth(&x.f_square()?)?.f_sub(&mxx)?.f_clamp_min(0.0)?;
        let vy = smooth(&y.f_square()?)?.f_sub(&myy)?.f_clamp_min(0.0)?;
        let vxy = smooth(&x.f_mul(&y)?)?.f_sub(&mxy)?;
        let top = |of: &Tensor, c: f64| of.f_mul_scalar(2.0)?.f_add_scalar(c);
        let low = |a: &Tensor, b: &Tensor, c: f64| a.f_add(b)?.f_add_scalar(c);
        let upper = top(&mxy, c1)?.f_mul(&top(&vxy, c2)?)?;
        let lower = low(&mxx, &myy, c1)?.f_mul(&low(&vx, &vy, c2)?)?;
        MetricState::sum(&sum_and_count(&upper.f_div(&lower)?)?)
    }

    fn reduction(&self) -> Reduction {
        Reduction::Ratio
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Max)
    }
}

fn has_range(what: &str, range: f64, output: &Tensor, target: &Tensor) -> Result<()> {
    match range > 0.0 {
        true => Ok(()),
        false => {
            let why = format!("data_range is {range}, but must be above 0");
            Err(misfit(what, output, target, &why))
        }
    }
}
