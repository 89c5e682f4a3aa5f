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
            /// image is copied to the host immediately, which waits for the device, so log images
            /// rarely. Loggers encode and write images on separate threads. If the run has no
            /// logger that writes images, the image is ignored.
            ///
            /// # Errors
            /// When the image does not have one of these shapes and dtypes, or when the step runs
            /// as a CUDA graph. To avoid the latter, log images only if
            /// [`Step::at_logging_interval`] returns true: such steps run without a CUDA graph.
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
            /// Returns whether the logged values of this batch are reported, so that code can do
            /// additional work, such as logging an image, only for these batches. In training these
            /// are the last batches of every n-th optimizer step, where n is
            /// [`log_every_n_steps`](crate::trainer::LoggingConfig::log_every_n_steps). In an
            /// evaluation it is the first batch of each data set. In a model whose training step
            /// calls this method, the steps for which it returns true run without a CUDA graph.
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
