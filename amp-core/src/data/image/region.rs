//! Random crops that vary in area and in aspect ratio.

use tch::{Kind, Tensor};

use super::{
    Transform,
    geometry::{cropped, resized, rounded},
    sizes, sizes_of_batch,
};
use crate::{Error, Result, precision::f32_or_f64, random::Rng};

/// Crops a rectangle of random area and aspect ratio, and resizes it to a square of a fixed size
/// (torchvision.transforms.v2.RandomResizedCrop).
#[derive(Debug, Clone, Copy)]
pub struct RandomResizedCrop {
    size: i64,
    scale: (f64, f64),
    ratio: (f64, f64),
}

/// A rectangle of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    top: i64,
    left: i64,
    height: i64,
    width: i64,
}

impl RandomResizedCrop {
    /// Makes a crop that is resized to a square of this size. By default the crop's area is from 8
    /// to 100 % of the image's area, and the ratio of its width to its height is from 3:4 to 4:3.
    pub fn new(size: i64) -> Self {
        Self { size, scale: (0.08, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) }
    }

    /// Sets the smallest and the largest area of a crop, as fractions of the image's area.
    #[must_use]
    pub fn scale(mut self, least: f64, most: f64) -> Self {
        self.scale = (least, most);
        self
    }

    /// Sets the smallest and the largest ratio of a crop's width to its height.
    #[must_use]
    pub fn ratio(mut self, least: f64, most: f64) -> Self {
        self.ratio = (least, most);
        self
    }

    fn check(&self) -> Result<()> {
        let ordered = |(least, most): (f64, f64)| least > 0.0 && least <= most && most.is_finite();
        match ordered(self.scale) && ordered(self.ratio) {
            true => Ok(()),
            false => Err(Error::config(format!(
                "RandomResizedCrop: the scale is {:?} and the ratio is {:?}, but each must be two \
                 positive numbers, the smaller one first",
                self.scale, self.ratio
            ))),
        }
    }

    /// Chooses a rectangle of random area and aspect ratio. If ten attempts give no rectangle that
    /// fits into the image, returns the largest rectangle in the middle of the image that has an
    /// allowed aspect ratio.
    fn region(&self, h: i64, w: i64, rng: &mut Rng) -> Region {
        let area = (h * w) as f64;
        for _ in 0..10 {
            let target = area * rng.uniform(self.scale.0, self.scale.1);
            let ratio = rng.uniform(self.ratio.0.ln(), self.ratio.1.ln()).exp();
            let width = (target * ratio).sqrt().round_ties_even() as i64;
            let height = (target / ratio).sqrt().round_ties_even() as i64;
            if (1..=w).contains(&width) && (1..=h).contains(&height) {
                let (top, left) = (rng.below(h - height + 1), rng.below(w - width + 1));
                return Region { top, left, height, width };
            }
        }
        let ratio = w as f64 / h as f64;
        let (height, width) = if ratio < self.ratio.0 {
            ((w as f64 / self.ratio.0).round_ties_even() as i64, w)
        } else if ratio > self.ratio.1 {
            (h, (h as f64 * self.ratio.1).round_ties_even() as i64)
        } else {
            (h, w)
        };
        Region { top: (h - height) / 2, left: (w - width) / 2, height, width }
    }
}

impl Transform for RandomResizedCrop {
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor> {
        let (_, h, w) = sizes(&image)?;
        self.check()?;
        let Region { top, left, height, width } = self.region(h, w, rng);
        resized(&cropped(&image, top, left, height, width)?, self.size, self.size)
    }

    /// Transforms all images of a batch at once if they are on CUDA. Up to rounding, the pixels
    /// equal those that [`apply`](Transform::apply) returns.
    fn apply_batch(&self, images: Tensor, rngs: &mut [Rng]) -> Result<Tensor> {
        let (_, h, w) = sizes_of_batch(&images, rngs)?;
        self.check()?;
        if images.device().is_cuda() {
            let regions: Vec<Region> = rngs.iter_mut().map(|rng| self.region(h, w, rng)).collect();
            return resized_regions(&images, &regions, self.size);
        }
        let changed = rngs.iter_mut().enumerate();
        let changed = changed.map(|(at, rng)| self.apply(images.f_get(at as i64)?, rng));
        Ok(Tensor::f_stack(&changed.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// Cuts a rectangle out of each image and scales all rectangles to squares of one size. `images`
/// has the shape `[N, C, H, W]`. Up to rounding, each square equals what [`resized`] returns for
/// its rectangle. One matrix product scales the rows of all images, and another matrix product
/// scales the columns. The number of kernels therefore does not depend on the batch size.
fn resized_regions(images: &Tensor, regions: &[Region], size: i64) -> Result<Tensor> {
    let whole = images.kind() == Kind::Uint8;
    let kind = f32_or_f64(images.kind());
    let pixels = images.f_to_kind(kind)?;
    let weights = |parts: Vec<(i64, i64)>, length: i64| -> Result<Tensor> {
        let options = (Kind::Double, images.device());
        let column = |of: fn(&(i64, i64)) -> i64| -> Result<Tensor> {
            let numbers: Vec<f64> = parts.iter().map(|part| of(part) as f64).collect();
            Ok(Tensor::f_from_slice(&numbers)?.f_to_device(images.device())?.f_view([-1, 1, 1])?)
        };
        let (start, own) = (column(|part| part.0)?, column(|part| part.1)?);
        let scale = own.f_div_scalar(size as f64)?;
        let steps = |count| Tensor::f_arange(count, options)?.f_add_scalar(0.5);
        // `middles` are the centers of the new pixels, and `places` are the centers of the old
        // pixels. Both are relative to the start of the rectangle, in units of old pixels.
        let middles = scale.f_mul(&steps(size)?.f_view([1, -1, 1])?)?;
        let places = steps(length)?.f_view([1, 1, -1])?.f_sub(&start)?;
        let far = places.f_sub(&middles)?.f_abs()?.f_div(&scale.f_clamp_min(1.0)?)?;
        let within = places.f_gt(0.0)?.f_logical_and(&places.f_lt_tensor(&own)?)?;
        let weights = far.f_neg()?.f_add_scalar(1.0)?.f_clamp_min(0.0)?.f_mul(&within)?;
        let sum = weights.f_sum_dim_intlist([2_i64].as_slice(), true, Kind::Double)?;
        Ok(weights.f_div(&sum)?.f_to_kind(kind)?)
    };
    let (n, (c, h, w)) = (regions.len() as i64, sizes(&images.f_get(0)?)?);
    let rows = weights(regions.iter().map(|part| (part.top, part.height)).collect(), h)?;
    let columns = weights(regions.iter().map(|part| (part.left, part.width)).collect(), w)?;
    // All channels of an image are scaled by the same matrix, so that one product suffices.
    let narrow = pixels.f_reshape([n, c * h, w])?.f_bmm(&columns.f_transpose(1, 2)?)?;
    let narrow = narrow.f_view([n, c, h, size])?.f_transpose(1, 2)?;
    let scaled = rows.f_bmm(&narrow.f_reshape([n, h, c * size])?)?;
    let scaled = scaled.f_view([n, size, c, size])?.f_transpose(1, 2)?.f_contiguous()?;
    match whole {
        true => rounded(&scaled),
        false => Ok(scaled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the rectangles lie within the image and have the requested areas and aspect
    /// ratios. Wide and tall rectangles must be about equally frequent.
    #[test]
    fn regions_are_what_is_asked_for() {
        let crop = RandomResizedCrop::new(8).scale(0.2, 0.6).ratio(0.5, 2.0);
        let mut rng = Rng::with_seed(3);
        let (mut areas, mut wide) = (0.0, 0);
        for _ in 0..4000 {
            let Region { top, left, height, width } = crop.region(300, 400, &mut rng);
            assert!(top >= 0 && left >= 0 && top + height <= 300 && left + width <= 400);
            let (area, ratio) = ((height * width) as f64 / 120_000.0, width as f64 / height as f64);
            assert!((0.195..0.605).contains(&area), "{area}");
            assert!((0.495..2.01).contains(&ratio), "{ratio}");
            areas += area;
            wide += i32::from(ratio > 1.0);
        }
        // Some of the largest and of the tallest rectangles do not fit into the wide image. The
        // mean area is therefore a little below 0.4, the middle of the range.
        assert!((0.37..0.41).contains(&(areas / 4000.0)), "{areas}");
        assert!((1950..2500).contains(&wide), "{wide}");
    }

    /// Checks in f64 that the matrix products give the same pixels as libtorch's resizing of each
    /// rectangle. Some rectangles are enlarged and others are reduced.
    #[test]
    fn regions_of_a_batch_are_scaled_as_each_by_itself() -> Result<()> {
        let mut rng = Rng::with_seed(4);
        let (n, h, w) = (40, 31, 43);
        let values: Vec<f64> = (0..n * 2 * h * w).map(|_| rng.uniform(0.0, 1.0)).collect();
        let images = Tensor::f_from_slice(&values)?.f_view([n, 2, h, w])?;
        let crop = RandomResizedCrop::new(17).scale(0.02, 1.0).ratio(0.3, 3.0);
        let regions: Vec<Region> = (0..n).map(|_| crop.region(h, w, &mut rng)).collect();
        assert!(regions.iter().any(|part| part.height < 17 && part.width > 17));
        let together = resized_regions(&images, &regions, 17)?;
        for (at, Region { top, left, height, width }) in regions.into_iter().enumerate() {
            let part = cropped(&images.get(at as i64), top, left, height, width)?;
            let off = (together.get(at as i64) - resized(&part, 17, 17)?).abs().max();
            assert!(
                off.double_value(&[]) < 1e-12,
                "pixels differ by {off} for {height} x {width} at {top}, {left}"
            );
        }
        Ok(())
    }

    /// Checks that the crop is the middle of the image, in the nearest allowed aspect ratio, if no
    /// random rectangle fits into the image (as in torchvision).
    #[test]
    fn images_of_another_proportion_give_their_middle() {
        let crop = RandomResizedCrop::new(8).scale(1.0, 1.0);
        let region = |h, w| crop.region(h, w, &mut Rng::with_seed(3));
        assert_eq!(region(10, 100), Region { top: 0, left: 43, height: 10, width: 13 });
        assert_eq!(region(100, 10), Region { top: 43, left: 0, height: 13, width: 10 });
        let whole = RandomResizedCrop::new(8).scale(4.0, 4.0).region(9, 10, &mut Rng::with_seed(3));
        assert_eq!(whole, Region { top: 0, left: 0, height: 9, width: 10 });
    }
}
