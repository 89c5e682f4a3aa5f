#[cfg(feature = "images")]
use std::{io::Cursor, path::Path};

#[cfg(feature = "images")]
use tch::Kind;
use tch::Tensor;

use crate::{Error, Result};
#[cfg(feature = "images")]
use crate::{
    file::Staged,
    precision::{f32_or_f64, is_floating},
};

/// Arranges the images of a batch in a grid, as one image (torchvision.utils.make_grid).
///
/// ```
/// use amp_core::{Result, data::ImageGrid, tch::{Device, Kind, Tensor}};
///
/// # fn main() -> Result<()> {
/// let images = Tensor::rand([10, 1, 8, 8], (Kind::Float, Device::Cpu));
/// let grid = ImageGrid { nrow: 5, ..ImageGrid::default() }.of(&images)?;
/// assert_eq!(grid.size(), [3, 2 * 10 + 2, 5 * 10 + 2]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageGrid {
    /// Images per row, at least 1. The default is 8.
    pub nrow: i64,
    /// Pixels between images and around the grid, at least 0. The default is 2.
    pub padding: i64,
    /// The value of the padding. The default is 0, which is black.
    pub pad_value: f64,
}

impl Default for ImageGrid {
    fn default() -> Self {
        Self { nrow: 8, padding: 2, pad_value: 0.0 }
    }
}

impl ImageGrid {
    /// Combines the images, of shape `[N, C, H, W]`, row by row into one image of shape `[C, H,
    /// W]`. Images with one channel become RGB images with three equal channels. A single image
    /// gets no padding.
    ///
    /// # Errors
    /// When the images do not have this shape, there is no image, or an option is out of range.
    pub fn of(&self, images: &Tensor) -> Result<Tensor> {
        let Self { nrow, padding, pad_value } = *self;
        let size = images.size();
        let &[count, channels, h, w] = size.as_slice() else {
            return Err(Error::config(format!(
                "the images of a grid are {size:?}, but must be [N, C, H, W]"
            )));
        };
        if count < 1 || channels < 1 || nrow < 1 || padding < 0 {
            return Err(Error::config(format!(
                "a grid of {count} images of {channels} channels, {nrow} in a row, padding {padding}: there must be at \
                 least one image, channel and column, and no negative padding"
            )));
        }
        let images =
            if channels == 1 { images.f_repeat([1, 3, 1, 1])? } else { images.shallow_clone() };
        if count == 1 {
            return Ok(images.f_squeeze_dim(0)?);
        }
        let columns = nrow.min(count);
        let rows = (count + columns - 1) / columns;
        let (height, width) = (h + padding, w + padding);
        let shape = [images.size()[1], rows * height + padding, columns * width + padding];
        let grid = Tensor::f_full(shape, pad_value, (images.kind(), images.device()))?;
        for at in 0..count {
            let (row, column) = (at / columns, at % columns);
            let place = grid.f_narrow(1, row * height + padding, h)?;
            let mut place = place.f_narrow(2, column * width + padding, w)?;
            place.f_copy_(&images.f_select(0, at)?)?;
        }
        Ok(grid)
    }
}

/// Writes an image of shape `[C, H, W]`, with 1 or 3 channels, as a PNG or JPEG file. The path's
/// extension determines the format (torchvision.utils.save_image). uint8 values are written as they
/// are. Floating-point values from 0 to 1 are scaled to 0 to 255 and rounded; values outside this
/// range are clamped. A failed call leaves no incomplete file.
///
/// ```no_run,standalone_crate
/// use amp_core::{Result, data::{ImageGrid, save_image}, tch::{Device, Kind, Tensor}};
///
/// # fn main() -> Result<()> {
/// let samples = Tensor::rand([64, 1, 8, 8], (Kind::Float, Device::Cpu));
/// save_image(&ImageGrid::default().of(&samples)?, "samples.png")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// When the shape or dtype of the image is not supported, a value is NaN, the extension is not
/// .png, .jpg or .jpeg, or the file cannot be written.
#[cfg(feature = "images")]
pub fn save_image(image: &Tensor, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let refused = |why: String| Error::config(format!("{}: {why}", path.display()));
    let format = match image::ImageFormat::from_path(path) {
        Ok(format @ (image::ImageFormat::Png | image::ImageFormat::Jpeg)) => format,
        _ => {
            return Err(refused(
                "the name of an image file must end with .png, .jpg or .jpeg".into(),
            ));
        }
    };
    let size = image.size();
    let (color, h, w) = match *size.as_slice() {
        [1, h, w] if h > 0 && w > 0 => (image::ExtendedColorType::L8, h, w),
        [3, h, w] if h > 0 && w > 0 => (image::ExtendedColorType::Rgb8, h, w),
        _ => {
            return Err(refused(format!(
                "the image is {size:?}, but must be [1, H, W] or [3, H, W]"
            )));
        }
    };
    let pixels = match image.kind() {
        Kind::Uint8 => image.shallow_clone(),
        kind if is_floating(kind) => {
            if image.f_isnan()?.f_any()?.f_int64_value(&[])? != 0 {
                return Err(refused("the image contains NaN".into()));
            }
            // 16-bit values are converted to f32 before they are scaled, as in torchvision. In a
            // 16-bit dtype, the scaled value would be rounded, which could change the pixel value.
            let scaled =
                image.f_to_kind(f32_or_f64(kind))?.f_mul_scalar(255.0)?.f_add_scalar(0.5)?;
            scaled.f_clamp(0.0, 255.0)?.f_to_kind(Kind::Uint8)?
        }
        kind => {
            let why = format!("the image is {kind:?}, but must be uint8 or floating-point");
            return Err(refused(why));
        }
    };
    let bytes: Vec<u8> = pixels.f_permute([1, 2, 0])?.f_contiguous()?.f_view(-1)?.try_into()?;
    let file = Staged::create(path)?;
    let mut encoded = Cursor::new(Vec::new());
    let side = |length: i64| {
        u32::try_from(length)
            .map_err(|_| refused(format!("the image is {size:?}, which is too large for a file")))
    };
    image::write_buffer_with_format(&mut encoded, &bytes, side(w)?, side(h)?, color, format)
        .map_err(|error| refused(format!("the image cannot be encoded: {error}")))?;
    file.write(encoded.get_ref())
}
