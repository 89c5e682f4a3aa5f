//! Images, texts and histograms in the format of torch.utils.tensorboard.

use super::{
    super::png,
    proto::{Dim, Histogram, Image, Metadata, PluginData, Shape, Tensor, Value},
};
use crate::{
    Result,
    log::{self, Media},
};

/// The dtype of a text: DT_STRING of types.proto.
const STRING: i32 = 7;

pub(super) fn value(name: &str, media: &Media) -> Result<Value> {
    let tag = name.to_owned();
    Ok(match media {
        Media::Image(image) => Value { tag, image: Some(encoded(image)?), ..Value::default() },
        Media::Text(text) => text_value(name, text),
        Media::Histogram(histogram) => {
            Value { tag, histogram: Some(counts(histogram)), ..Value::default() }
        }
    })
}

fn encoded(image: &log::Image) -> Result<Image> {
    Ok(Image {
        height: image.height.cast_signed(),
        width: image.width.cast_signed(),
        colorspace: image.channels.into(),
        encoded: png::encoded(image)?,
    })
}

fn counts(histogram: &log::Histogram) -> Histogram {
    Histogram {
        min: histogram.min,
        max: histogram.max,
        num: histogram.count as f64,
        sum: histogram.sum,
        sum_squares: histogram.sum_squares,
        bucket_limit: histogram.limits.clone(),
        bucket: histogram.counts.iter().map(|count| *count as f64).collect(),
    }
}

/// Makes a text summary. Its `content` is empty, which means version 0 in
/// tensorboard/plugins/text/plugin_data.proto.
fn text_value(name: &str, text: &str) -> Value {
    let plugin_data = PluginData { plugin_name: "text".to_owned(), content: Vec::new() };
    Value {
        tag: format!("{name}/text_summary"),
        tensor: Some(Tensor {
            dtype: STRING,
            shape: Some(Shape { dim: vec![Dim { size: 1 }] }),
            string_val: vec![text.as_bytes().to_vec()],
            ..Tensor::default()
        }),
        metadata: Some(Metadata { plugin_data: Some(plugin_data) }),
        ..Value::default()
    }
}
