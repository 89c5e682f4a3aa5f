//! Writes the summaries that TensorBoard's HParams page reads
//! (tensorboard/plugins/hparams/{plugin_data,api}.proto).

use std::collections::BTreeMap;

use prost::Message;

use super::{
    super::hyperparameters,
    proto::{Dim, Metadata, PluginData, Shape, Tensor, Value},
};
use crate::event::RunStart;

/// The message HParamsPluginData of plugin_data.proto.
#[derive(Clone, PartialEq, Message)]
struct Content {
    #[prost(int32, tag = "1")]
    version: i32,
    #[prost(message, optional, tag = "3")]
    start: Option<SessionStart>,
    #[prost(message, optional, tag = "4")]
    end: Option<SessionEnd>,
}

/// The message SessionStartInfo of plugin_data.proto.
#[derive(Clone, PartialEq, Message)]
struct SessionStart {
    #[prost(btree_map = "string, message", tag = "1")]
    hparams: BTreeMap<String, Hparam>,
    #[prost(double, tag = "5")]
    start_time_secs: f64,
}

/// The message SessionEndInfo of plugin_data.proto.
#[derive(Clone, PartialEq, Message)]
struct SessionEnd {
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(double, tag = "2")]
    end_time_secs: f64,
}

/// The message Value of google/protobuf/struct.proto.
#[derive(Clone, PartialEq, Message)]
struct Hparam {
    #[prost(double, optional, tag = "2")]
    number: Option<f64>,
    #[prost(string, optional, tag = "3")]
    string: Option<String>,
    #[prost(bool, optional, tag = "4")]
    bool: Option<bool>,
}

/// The status of a run that ended: STATUS_SUCCESS of api.proto.
const SUCCESS: i32 = 1;
/// The dtype of a tensor: DT_FLOAT of types.proto.
const FLOAT: i32 = 1;

/// Returns the summary with the hyperparameters of a run that begins.
pub(super) fn session_start(start: &RunStart, now: f64) -> Value {
    let all = hyperparameters(start).into_iter();
    let hparams = all.map(|(name, value)| (name, hparam(&value))).collect();
    let session = SessionStart { hparams, start_time_secs: now };
    let content = Content { start: Some(session), ..Default::default() };
    value("_hparams_/session_start_info", &content)
}

/// Returns the summary that marks the run as ended.
pub(super) fn session_end(now: f64) -> Value {
    let session = SessionEnd { status: SUCCESS, end_time_secs: now };
    let content = Content { end: Some(session), ..Default::default() };
    value("_hparams_/session_end_info", &content)
}

fn hparam(value: &serde_json::Value) -> Hparam {
    use serde_json::Value::{Bool, Number, String};
    match value {
        Bool(flag) => Hparam { bool: Some(*flag), ..Default::default() },
        Number(number) => Hparam { number: number.as_f64(), ..Default::default() },
        String(text) => Hparam { string: Some(text.clone()), ..Default::default() },
        other => Hparam { string: Some(other.to_string()), ..Default::default() },
    }
}

/// Puts `content` into the metadata of a tensor whose value has no meaning, as TensorBoard's
/// summary_v2.py does.
fn value(tag: &str, content: &Content) -> Value {
    let plugin_data =
        PluginData { plugin_name: "hparams".to_owned(), content: content.encode_to_vec() };
    let shape = Some(Shape { dim: vec![Dim { size: 1 }] });
    Value {
        tag: tag.to_owned(),
        tensor: Some(Tensor { dtype: FLOAT, shape, float_val: vec![0.0], ..Tensor::default() }),
        metadata: Some(Metadata { plugin_data: Some(plugin_data) }),
        ..Value::default()
    }
}
