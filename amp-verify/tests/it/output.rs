//! What commands print and write.

use std::collections::BTreeSet;

use serde_json::Value;
use tempfile::tempdir;

use crate::support::{amp, conforms, device, files, text};

/// What is published of the report.
pub(crate) fn schema() -> Value {
    serde_json::from_str(include_str!("../../schema/verify.json")).expect("a schema")
}

fn precisions(report: &Value) -> Vec<String> {
    let runs = report["runs"].as_array().expect("runs");
    runs.iter().map(|run| run["precision"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn json_is_one_object_with_every_precision_and_its_deltas() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["verify", "--device", &device(), "--epochs", "1", "--format", "json"])
        .args(["--output", "report.json"])
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    conforms(&report, &schema());
    assert_eq!(
        precisions(&report),
        ["32-true", "16-mixed", "bf16-mixed", "64-true", "16-true", "bf16-true"]
    );
    for (at, run) in report["runs"].as_array().expect("runs").iter().enumerate() {
        assert_eq!(run["delta"].is_null(), at == 0, "every run but the baseline has a delta");
        assert!(run["peak_memory_bytes"].as_u64().expect("bytes") > 1_000_000);
        let accuracy = run["accuracy"].as_f64().expect("a number");
        assert!(accuracy > 0.5, "{accuracy} after an epoch is no better than chance");
        if at > 0 {
            let baseline = report["runs"][0]["accuracy"].as_f64().expect("a number");
            assert_eq!(run["delta"]["accuracy"].as_f64(), Some(accuracy - baseline));
        }
    }
    let dtypes = |at: usize| report["runs"][at]["observed"]["matmul"][0].as_str();
    let seen: Vec<_> = (0..6).map(dtypes).collect();
    let expected = ["float32", "float16", "bfloat16", "float64", "float16", "bfloat16"];
    assert_eq!(seen, expected.map(Some));
    let written = std::fs::read(folder.path().join("report.json")).expect("the report's file");
    assert_eq!(written, output.stdout, "the file holds what was printed");
    assert_eq!(files(folder.path()), ["report.json"], "and nothing is left beside it");
}

#[test]
fn the_baseline_runs_even_when_it_is_not_asked_for_and_none_runs_twice() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["verify", "--device", &device(), "--epochs", "1", "--format", "json"])
        .args(["--precision", "bf16,bf16-mixed"])
        .output()
        .expect("the binary runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(precisions(&report), ["32-true", "bf16-mixed"]);
}

#[test]
fn two_runs_of_one_seed_agree_and_another_seed_differs() {
    let loss = |seed: &str| {
        let folder = tempdir().expect("a temporary folder");
        let output = amp(folder.path())
            .args(["verify", "--device", "cpu", "--epochs", "1", "--format", "json"])
            .args(["--precision", "32-true", "--threads", "1", "--seed", seed])
            .output()
            .expect("the binary runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        report["runs"][0]["loss"].as_f64().expect("a loss")
    };
    assert_eq!(loss("1"), loss("1"));
    assert_ne!(loss("1"), loss("2"));
}

#[test]
fn logs_hold_every_epoch_in_both_formats() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["train", "--device", &device(), "--epochs", "2", "--precision", "bf16-mixed"])
        .args(["--log-jsonl", "log.jsonl", "--log-csv", "log.csv"])
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = std::fs::read_to_string(folder.path().join("log.jsonl")).expect("the log");
    let events: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((of("fit_start"), of("observed"), of("epoch_end"), of("fit_end")), (1, 1, 2, 1));
    let csv = std::fs::read_to_string(folder.path().join("log.csv")).expect("the log");
    let names: BTreeSet<&str> =
        csv.lines().skip(1).filter_map(|line| line.split(',').nth(4)).collect();
    assert_eq!(names, BTreeSet::from(["train_loss", "train_acc", "val_loss", "val_acc"]));
    let printed = text(&output.stdout);
    assert_eq!(printed.lines().count(), 4, "a title, a header and two epochs:\n{printed}");
}

#[test]
fn the_table_has_a_row_per_precision_and_fits_no_decimals_away() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["verify", "--device", &device(), "--epochs", "1", "--precision", "16-mixed"])
        .output()
        .expect("the binary runs");
    let printed = text(&output.stdout);
    assert!(printed.contains("MixedPrecisionDemo (117,898 parameters) on digits"), "{printed}");
    let row = printed.lines().find(|line| line.contains("16-mixed")).expect("a row");
    for part in ["%", "0 of 23", "65536", "MiB", "f16 / f32 / f32"] {
        assert!(row.contains(part), "`{part}` is not in {row}");
    }
    assert_eq!(text(&output.stderr), "", "no progress bar where there is no terminal");
}

/// Names longer than their numbers widen their column: each stands by itself above its figure.
#[test]
fn every_value_of_an_epoch_has_a_column_with_its_name() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["train", "--model", "ProductionAMPModel", "--epochs", "1", "--quiet"])
        .args(["--device", &device()])
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let mut lines = printed.lines().skip_while(|line| !line.starts_with("epoch "));
    let header = lines.next().expect("a header");
    let names: Vec<&str> = header.split_whitespace().collect();
    for name in ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_confidence"] {
        assert!(names.contains(&name), "{name} in {header}");
    }
    let figures = lines.next().expect("an epoch");
    assert_eq!(figures.split_whitespace().count(), names.len(), "{header}\n{figures}");
    assert_eq!(figures.chars().count(), header.chars().count(), "{header}\n{figures}");
}
