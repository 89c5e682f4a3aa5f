//! Images, texts and histograms, logged by steps and hooks.

use tch::Tensor;

use super::{Hook, ManualStep, Step};
use crate::{
    Result,
    data::ImageGrid,
    log::{Histogram, Image, Media},
};

fn image(image: &Tensor) -> Result<Option<Media>> {
    let image = image.f_detach()?;
    let image = match image.dim() {
        4 => ImageGrid::default().of(&image)?,
        _ => image,
    };
    Image::from_tensor(&image).map(Media::Image).map(Some)
}

macro_rules! logs_media {
    ($($type:ty),*) => {$(
        impl $type {
            /// Logs an image `[H, W]` or `[C, H, W]` with 1, 3 or 4 channels, or images `[N, C, H,
            /// W]` as a [grid](ImageGrid). Elements are uint8, or floating-point from 0 to 1. The
            /// image is copied to the host immediately. The copy waits for the device, so log
            /// images rarely. Loggers encode and write images on separate threads. If no logger
            /// writes images, the image is dropped.
            ///
            /// # Errors
            /// When the image has another shape or dtype, or when the step runs as a CUDA graph. If
            /// a step calls [`Step::at_logging_interval`], the steps whose values are reported run
            /// without a CUDA graph. Therefore log images only if that method returns true.
            pub fn log_image(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
                self.log.media(name, || image(tensor))
            }

            /// Logs a text, which TensorBoard shows as Markdown.
            ///
            /// # Errors
            /// When the step runs as a CUDA graph.
            pub fn log_text(&mut self, name: &str, text: impl Into<String>) -> Result<()> {
                self.log.media(name, || Ok(Some(Media::Text(text.into()))))
            }

            /// Logs the distribution of the elements of `values` as a histogram. The histogram is
            /// computed immediately, on the device of `values`. If no element is finite, nothing is
            /// logged.
            ///
            /// # Errors
            /// When the elements are complex, or when the step runs as a CUDA graph.
            pub fn log_histogram(&mut self, name: &str, values: &Tensor) -> Result<()> {
                self.log.media(name, || Ok(Histogram::from_tensor(values)?.map(Media::Histogram)))
            }
        }
    )*};
}

logs_media!(Hook<'_>, Step<'_>, ManualStep<'_>);

macro_rules! at_interval {
    ($($type:ty),*) => {$(
        impl $type {
            /// Returns whether values of this batch are reported. Code can do additional work only
            /// for these batches, such as logging an image. In training, values are reported for
            /// the last batch of each
            /// [`log_every_n_steps`](crate::trainer::LoggingConfig::log_every_n_steps)-th step. In
            /// an evaluation, values are reported for the first batch of each set. If a step calls
            /// this method, the steps whose values are reported run without a CUDA graph.
            ///
            /// ```no_run,standalone_crate
            /// use amp_core::prelude::*;
            ///
            /// fn show_inputs(batch: &Batch, step: &mut Step<'_>) -> Result<()> {
            ///     if step.at_logging_interval() {
            ///         step.log_image("inputs", &batch.input)?;
            ///     }
            ///     Ok(())
            /// }
            /// # fn main() {}
            /// ```
            pub fn at_logging_interval(&self) -> bool {
                self.log.interval().ask()
            }
        }
    )*};
}

at_interval!(Step<'_>, ManualStep<'_>);
