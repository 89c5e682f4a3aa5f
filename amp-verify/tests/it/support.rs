use std::{
    collections::BTreeSet,
    env,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Map, Value};

/// The binary under test; packed tests find it beside their folder.
pub(crate) fn amp(folder: &Path) -> Command {
    let binary = env::var("AMP_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_amp").to_owned());
    let mut command = Command::new(binary);
    command.current_dir(folder);
    command
}

/// The device tests run on: `AMP_DEVICE`, set by `cargo amp test --device`, or the CPU.
pub(crate) fn device() -> String {
    env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What was printed to standard error, which must be one line, with exit code 2 and nothing on
/// standard output.
pub(crate) fn refusal(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "exit code; stderr: {err}");
    assert_eq!(out, "", "standard output");
    assert_eq!(err.trim_end().lines().count(), 1, "one line, not: {err}");
    err.trim_end().to_owned()
}

/// The command is refused, with a line that says this, and writes nothing.
#[track_caller]
pub(crate) fn assert_refused(command: &mut Command, folder: &Path, expected: &str) {
    let line = refusal(&command.output().expect("the binary runs"));
    assert!(line.contains(expected), "`{line}` does not say `{expected}`");
    assert_eq!(files(folder), Vec::<String>::new(), "files written");
}

/// The names of the files in `folder`.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().expect("a folder");
    entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect()
}

/// The same device for tensors.
pub(crate) fn torch_device() -> amp_core::tch::Device {
    amp_core::hardware::parse_device(&device()).expect("AMP_DEVICE names a device of this machine")
}

/// Keeps libtorch's generators, which are one for the process, from other tests while it lives.
pub(crate) fn generator() -> amp_core::random::Section {
    amp_core::random::seeded(0).expect("a seed")
}

/// Holds a report against its published schema.
pub(crate) fn conforms(report: &Value, schema: &Value) {
    check(report, schema, schema, "report");
}

/// Holds `value` against the keywords that the schema uses.
fn check(value: &Value, schema: &Value, root: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/$defs/").expect("a definition");
        return check(value, &root["$defs"][name], root, at);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        // Here always an object or null.
        let of = usize::from(value.is_null());
        return check(value, &any[of], root, at);
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value}");
    }
    if !schema["const"].is_null() {
        assert_eq!(*value, schema["const"], "{at}");
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    let is = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        other => panic!("{at}: the schema has type {other:?}"),
    };
    assert!(types.is_empty() || types.iter().any(is), "{at}: {value} is not {types:?}");
    if let (Some(object), Some(properties)) = (value.as_object(), schema["properties"].as_object())
    {
        let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(keys(object), keys(properties), "{at}");
        for (name, value) in object {
            check(value, &properties[name], root, &format!("{at}.{name}"));
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(item, &schema["items"], root, &format!("{at}[{index}]"));
    }
}
