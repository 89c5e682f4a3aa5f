//! Encodes images as PNG files.

use crate::{Error, Result, log::Image};

/// Encodes an image as a PNG file.
pub(super) fn encoded(image: &Image) -> Result<Vec<u8>> {
    let failed = |error: png::EncodingError| {
        Error::config(format!("an image cannot be encoded as PNG: {error}"))
    };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width, image.height);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(match image.channels {
        1 => png::ColorType::Grayscale,
        4 => png::ColorType::Rgba,
        _ => png::ColorType::Rgb,
    });
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&image.pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}
