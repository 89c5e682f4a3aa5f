//! Transforms that move pixels.

use tch::{Kind, Tensor};

use super::{Transform, sizes};
use crate::{Error, Result, random::Rng};

/// Scales an image by bilinear interpolation with antialiasing (torchvision.transforms.v2.Resize).
#[derive(Debug, Clone, Copy)]
pub struct Resize {
    height: Option<i64>,
    size: i64,
}

impl Resize {
    /// The shorter side gets this size, the other one keeps the proportion.
    pub fn new(size: i64) -> Self {
        Self { height: None, size }
    }

    /// To this height and width.
    pub fn to(height: i64, width: i64) -> Self {
        Self { height: Some(height), size: width }
    }
}

impl Transform for Resize {
    fn apply(&self, image: Tensor, _: &mut Rng) -> Result<Tensor> {
        let (_, h, w) = sizes(&image)?;
        let Self { height, size } = *self;
        let (height, width) = match height {
            Some(height) => (height, size),
            // Rounded towards 0, as in torchvision.
            None if w <= h => (size * h / w, size),
            None => (size, size * w / h),
        };
        resized(&image, height, width)
    }
}

fn resized(image: &Tensor, height: i64, width: i64) -> Result<Tensor> {
    let (_, h, w) = sizes(image)?;
    if height < 1 || width < 1 {
        return Err(Error::config(format!(
            "an image of {height} x {width} pixels: a size must be at least 1"
        )));
    }
    if (h, w) == (height, width) {
        return Ok(image.shallow_clone());
    }
    let scaled = image.f_unsqueeze(0)?.f_internal_upsample_bilinear2d_aa(
        [height, width],
        false,
        None,
        None,
    )?;
    Ok(scaled.f_squeeze_dim(0)?)
}

fn cropped(image: &Tensor, top: i64, left: i64, height: i64, width: i64) -> Result<Tensor> {
    Ok(image.f_narrow(1, top, height)?.f_narrow(2, left, width)?)
}

/// The middle of an image; a smaller image gets a border of zeros (torchvision.transforms.v2.CenterCrop).
#[derive(Debug, Clone, Copy)]
pub struct CenterCrop {
    height: i64,
    width: i64,
}

impl CenterCrop {
    /// A square.
    pub fn new(size: i64) -> Self {
        Self::to(size, size)
    }

    /// Of this height and width.
    pub fn to(height: i64, width: i64) -> Self {
        Self { height, width }
    }
}

impl Transform for CenterCrop {
    fn apply(&self, mut image: Tensor, _: &mut Rng) -> Result<Tensor> {
        let Self { height, width } = *self;
        let (_, mut h, mut w) = sizes(&image)?;
        if h < height || w < width {
            let missing = |own: i64, asked: i64| (asked - own).max(0);
            let (rows, columns) = (missing(h, height), missing(w, width));
            let border = [columns / 2, (columns + 1) / 2, rows / 2, (rows + 1) / 2];
            image = image.f_constant_pad_nd(border)?;
            (h, w) = (h + rows, w + columns);
        }
        let start = |own: i64, asked: i64| ((own - asked) as f64 / 2.0).round_ties_even() as i64;
        cropped(&image, start(h, height), start(w, width), height, width)
    }
}

/// A part of random area and proportion, scaled to one size (torchvision.transforms.v2.RandomResizedCrop).
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
    /// To a square of this size, from 8 to 100 % of the area in proportions from 3:4 to 4:3.
    pub fn new(size: i64) -> Self {
        Self { size, scale: (0.08, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) }
    }

    /// The least and the greatest part of the area.
    #[must_use]
    pub fn scale(mut self, least: f64, most: f64) -> Self {
        self.scale = (least, most);
        self
    }

    /// The least and the greatest width over height.
    #[must_use]
    pub fn ratio(mut self, least: f64, most: f64) -> Self {
        self.ratio = (least, most);
        self
    }

    /// Ten tries to find a part of random area and proportion within the image; then the largest part in
    /// the middle whose proportion is allowed.
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
        let ordered = |(least, most): (f64, f64)| least > 0.0 && least <= most && most.is_finite();
        if !ordered(self.scale) || !ordered(self.ratio) {
            return Err(Error::config(format!(
                "RandomResizedCrop of scale {:?} and ratio {:?}: give positive numbers, the least first",
                self.scale, self.ratio
            )));
        }
        let Region { top, left, height, width } = self.region(h, w, rng);
        resized(&cropped(&image, top, left, height, width)?, self.size, self.size)
    }
}

/// Mirrors some images left to right (torchvision.transforms.v2.RandomHorizontalFlip).
#[derive(Debug, Clone, Copy)]
pub struct RandomHorizontalFlip {
    probability: f64,
}

impl RandomHorizontalFlip {
    /// With this probability.
    pub fn new(probability: f64) -> Self {
        Self { probability }
    }
}

impl Transform for RandomHorizontalFlip {
    fn apply(&self, image: Tensor, rng: &mut Rng) -> Result<Tensor> {
        sizes(&image)?;
        match rng.chance(self.probability) {
            true => Ok(image.f_flip([2])?),
            false => Ok(image),
        }
    }
}

/// The greatest value of a pixel.
pub(super) fn bound(kind: Kind) -> f64 {
    if kind == Kind::Uint8 { 255.0 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Within the image, the area and the proportion; each as often as the other, and every corner reached.
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
        // Tall and large parts do not fit into a wide image, so a little less than the middle.
        assert!((0.37..0.41).contains(&(areas / 4000.0)), "{areas}");
        assert!((1950..2500).contains(&wide), "{wide}");
    }

    /// torchvision's fallback, by its formula: the middle, in the nearest proportion.
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
