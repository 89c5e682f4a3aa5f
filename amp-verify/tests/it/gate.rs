//! `cargo amp gate`: exit codes, files, cache, and what it refuses.

use std::{fs, path::Path, process::Output};

use amp_core::precision::Precision;
use amp_verify::gate::{self, Cell, Failure, ModelReport, Reason, Report, SCHEMA, Status, Tier};
use fixtures::models;
use rstest::rstest;
use serde_json::Value;
use tempfile::tempdir;

use crate::support::{amp, device, refusal, text};

/// The smallest of gates.
fn gate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = amp(folder);
    command.args(["gate", "--model", "PrecisionTestModel", "--precision", "bf16-mixed"]);
    command.args(["--device", &device(), "--processes", "1"]).args(arguments);
    command.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY");
    command.output().expect("the binary runs")
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).expect("the file was written")
}

/// Passes, writes every file, and costs nothing the second time.
#[test]
fn passes_writes_and_remembers() {
    let folder = tempdir().expect("a folder");
    let files = ["--json", "g.json", "--junit", "g.xml", "--markdown", "g.md"];
    let first = gate(folder.path(), &files);
    assert_eq!(first.status.code(), Some(0), "{}{}", text(&first.stdout), text(&first.stderr));
    let json: Value = serde_json::from_str(&read(folder.path(), "g.json")).expect("JSON");
    check(&json, &schema(), &schema(), "report");
    let report: Report = serde_json::from_value(json).expect("a report");
    assert_eq!((report.status, report.cached), (Status::Pass, 0));
    assert!(report.executed > 8 && !report.left_out.is_empty());
    let xml = read(folder.path(), "g.xml");
    assert!(
        xml.contains(r#"<testcase name="bf16-mixed" classname="PrecisionTestModel">"#),
        "{xml}"
    );
    assert!(read(folder.path(), "g.md").contains("## Precision gate: PASS"));

    let second = gate(folder.path(), &["--json", "h.json"]);
    assert_eq!(second.status.code(), Some(0));
    let again: Report = serde_json::from_str(&read(folder.path(), "h.json")).expect("a report");
    assert_eq!((again.executed, again.cached), (0, report.executed));
    let numbers = |report: Report| serde_json::to_value(report.models).expect("JSON");
    assert_eq!(numbers(again), numbers(report), "what is remembered is what was found");
}

/// Two seeds cannot show anything at a risk of one in ten thousand; no golden is no pass.
#[rstest]
#[case::inconclusive(&["--seeds", "2", "--max-seeds", "2", "--alpha", "0.0001"], 3, "INCONCLUSIVE")]
#[case::not_comparable(&["--seeds", "2", "--max-seeds", "2", "--goldens", "."], 4, "NOT COMPARABLE")]
fn exit_codes_say_what_was_found(
    #[case] arguments: &[&str],
    #[case] code: i32,
    #[case] status: &str,
) {
    let folder = tempdir().expect("a folder");
    let output = gate(folder.path(), arguments);
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains(status));
}

#[rstest]
#[case::one_seed(&["--seeds", "1"], "there must be at least 2")]
#[case::fewer_at_most(&["--seeds", "5", "--max-seeds", "3"], "no fewer at most")]
#[case::alpha(&["--alpha", "0.7"], "alpha 0.7: it must be in (0, 0.5)")]
#[case::baseline(&["--precision", "32-true"], "32-true is the baseline")]
#[case::model(&["--model", "Demo"], "unknown model `Demo`")]
#[case::processes(&["--processes", "0"], "processes 0: it must be at least 1")]
#[case::folder(&["--json", "nowhere/g.json"], "there is no folder nowhere")]
#[case::all_and_one(&["--all", "--model", "Demo"], "cannot be used with")]
fn bad_input_is_refused(#[case] arguments: &[&str], #[case] expected: &str) {
    let folder = tempdir().expect("a folder");
    let output = amp(folder.path())
        .args(["gate", "--device", "cpu"])
        .args(arguments)
        .output()
        .expect("runs");
    let line = refusal(&output);
    assert!(line.contains(expected), "`{line}` does not say `{expected}`");
}

#[test]
fn the_worst_status_is_the_wholes() {
    use Status::{Inconclusive, NotComparable, Pass, Regression};
    let mut all = [Regression, Pass, NotComparable, Inconclusive];
    all.sort();
    assert_eq!(all, [Pass, Inconclusive, NotComparable, Regression]);
    assert_eq!(all.map(Status::exit_code), [0, 3, 4, 1]);
}

/// δ of each model is the recorded one.
#[test]
fn margins_are_those_that_were_recorded() {
    let recorded: Value =
        serde_json::from_str(include_str!("../../../fixtures/margins.json")).expect("JSON");
    for model in models::ALL {
        let own = &recorded["models"][model.name];
        assert_eq!(own["margin"].as_f64(), Some(model.margin), "{}", model.name);
        assert_eq!(own["epochs"].as_i64(), Some(model.quick_epochs), "{}", model.name);
    }
}

/// Twelve red cells whose text would end a workflow command early.
#[test]
fn annotations_are_capped_and_escaped() {
    let cell = Cell {
        precision: Precision::F16Mixed,
        status: Status::Regression,
        judgement: None,
        failures: vec![Failure::new(Reason::NonFinite, "100% lost::error")],
        seeds: vec![1],
        baseline: vec![None],
        metric: vec![None],
        conformance: None,
        skipped_steps: 0,
        finding: None,
    };
    let model = ModelReport {
        model: "a,b".into(),
        metric: "val_acc".into(),
        epochs: 1,
        margin: 0.01,
        learns_by: 0.3,
        control: None,
        cells: vec![cell; 12],
    };
    let report = Report {
        schema: SCHEMA.into(),
        status: Status::Regression,
        tier: Tier::Quick,
        fingerprint: None,
        alpha: 0.05,
        models: vec![model],
        left_out: Vec::new(),
        undiagnosed: 0,
        executed: 0,
        cached: 0,
        seconds: 0.0,
    };
    let text = gate::annotations(&report);
    assert_eq!(text.lines().count(), 9, "{text}");
    let expected = "::error title=FAIL a%2Cb under 16-mixed::100%25 lost::error";
    assert_eq!(text.lines().next(), Some(expected));
    assert_eq!(text.lines().last(), Some("::warning::4 more are in the job summary"));
}

/// The report's published schema.
pub(crate) fn schema() -> Value {
    serde_json::from_str(include_str!("../../schema/gate.json")).expect("a schema")
}

/// Holds `value` against the keywords that the schema uses.
pub(crate) fn check(value: &Value, schema: &Value, root: &Value, at: &str) {
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
        let keys = |map: &serde_json::Map<String, Value>| {
            map.keys().cloned().collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(keys(object), keys(properties), "{at}");
        for (name, value) in object {
            check(value, &properties[name], root, &format!("{at}.{name}"));
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(item, &schema["items"], root, &format!("{at}[{index}]"));
    }
}
