//! The messages of wandb/proto/wandb_internal.proto that the logger writes, without unused fields.

/// The message Record.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    /// The number of the record in its file, counted from 1.
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
    #[prost(message, optional, tag = "2")]
    pub(super) history: Option<History>,
    #[prost(message, optional, tag = "3")]
    pub(super) summary: Option<Summary>,
    #[prost(message, optional, tag = "6")]
    pub(super) files: Option<Files>,
    #[prost(message, optional, tag = "17")]
    pub(super) run: Option<Run>,
    #[prost(message, optional, tag = "18")]
    pub(super) exit: Option<Exit>,
    #[prost(message, optional, tag = "21")]
    pub(super) header: Option<Header>,
    #[prost(message, optional, tag = "200")]
    pub(super) info: Option<Info>,
}

/// The message _RecordInfo.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub(super) stream_id: String,
}

/// The message HeaderRecord.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Header {
    #[prost(message, optional, tag = "1")]
    pub(super) version_info: Option<Version>,
}

/// The message VersionInfo.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Version {
    #[prost(string, tag = "1")]
    pub(super) producer: String,
    #[prost(string, tag = "2")]
    pub(super) min_consumer: String,
}

/// The message RunRecord.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Run {
    #[prost(string, tag = "1")]
    pub(super) run_id: String,
    #[prost(string, tag = "3")]
    pub(super) project: String,
    #[prost(message, optional, tag = "4")]
    pub(super) config: Option<Config>,
    #[prost(string, tag = "8")]
    pub(super) display_name: String,
    #[prost(string, tag = "13")]
    pub(super) host: String,
    #[prost(message, optional, tag = "17")]
    pub(super) start_time: Option<Time>,
}

/// The message google.protobuf.Timestamp.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Time {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

/// The message ConfigRecord.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Config {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

/// The message SummaryRecord.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

/// The message HistoryRecord.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct History {
    #[prost(message, repeated, tag = "1")]
    pub(super) item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub(super) step: Option<Step>,
}

/// The message HistoryStep.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Step {
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
}

/// The messages ConfigItem, SummaryItem and HistoryItem, which have the same fields.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Item {
    #[prost(string, repeated, tag = "2")]
    pub(super) nested_key: Vec<String>,
    #[prost(string, tag = "16")]
    pub(super) value_json: String,
}

/// The message FilesRecord.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Files {
    #[prost(message, repeated, tag = "1")]
    pub(super) files: Vec<File>,
}

/// The message FilesItem. With policy 0, W&B uploads the file immediately.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct File {
    #[prost(string, tag = "1")]
    pub(super) path: String,
    #[prost(int32, tag = "2")]
    pub(super) policy: i32,
    #[prost(int32, tag = "3")]
    pub(super) kind: i32,
}

/// The message RunExitRecord.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Exit {
    #[prost(int32, tag = "1")]
    pub(super) exit_code: i32,
    /// The duration of the run in seconds.
    #[prost(int32, tag = "2")]
    pub(super) runtime: i32,
}
