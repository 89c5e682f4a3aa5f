//! The logs of a run, whole or killed.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use rstest::rstest;
use serde_json::Value;
use tempfile::tempdir;

use crate::support::{amp, device, text};

const LOGS: [&str; 6] =
    ["--log-jsonl", "log.jsonl", "--log-csv", "log.csv", "--log-tensorboard", "runs"];

/// The one event file of the run.
fn event_file(folder: &Path) -> PathBuf {
    let run = folder.join("runs/MixedPrecisionDemo/bf16-mixed/version_0");
    let mut files = run.read_dir().expect("the run's folder").map(|entry| entry.expect("a file"));
    let file = files.next().expect("an event file").path();
    assert!(files.next().is_none(), "more than one file");
    file
}

/// Bytes of the whole TFRecords at the beginning: length, its checksum, data, its checksum.
fn whole_records(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(length) = bytes.get(end..end + 8) {
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
        let next = end + 16 + length as usize;
        if next > bytes.len() {
            break;
        }
        end = next;
    }
    end
}

#[test]
fn tensorboard_has_a_folder_for_every_precision() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["verify", "--device", &device(), "--epochs", "1", "--precision", "bf16-mixed"])
        .args(LOGS)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = fs::read(event_file(folder.path())).expect("the event file");
    assert!(bytes.len() > 200);
    assert_eq!(whole_records(&bytes), bytes.len());
    assert!(folder.path().join("runs/MixedPrecisionDemo/32-true/version_0").is_dir());
}

/// A run that is killed leaves whole records, among them all of the epochs it has shown.
#[test]
fn a_killed_run_leaves_readable_logs() {
    let folder = tempdir().expect("a temporary folder");
    let mut run = amp(folder.path())
        .args(["train", "--device", &device(), "--epochs", "10000", "--precision", "bf16-mixed"])
        .args(LOGS)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // A title, a header, and epochs; when the fifth is shown the fourth has long been written.
    let shown = BufReader::new(run.stdout.take().expect("piped")).lines().take(7).count();
    run.kill().expect("it is still running");
    run.wait().expect("it has ended");
    assert_eq!(shown, 7, "the run ended by itself");

    let lines = fs::read_to_string(folder.path().join("log.jsonl")).expect("the log");
    assert!(lines.ends_with('\n'), "the last line is cut");
    let events: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert!(events.iter().filter(|event| event["event"] == "epoch_end").count() >= 4);

    let rows = fs::read_to_string(folder.path().join("log.csv")).expect("the log");
    assert!(rows.ends_with('\n'), "the last row is cut");
    assert!(rows.lines().all(|row| row.split(',').count() == 6), "{rows}");
    assert!(rows.lines().filter(|row| row.contains(",val_acc,")).count() >= 4);

    let bytes = fs::read(event_file(folder.path())).expect("the event file");
    assert_eq!(whole_records(&bytes), bytes.len(), "the last record is cut");
    let tags = bytes.windows(7).filter(|tag| tag == b"val_acc").count();
    assert!(tags >= 4, "{tags}");
}

/// What is trained does not depend on how it is loaded.
#[rstest]
#[case(&["--data-placement", "host"])]
#[case(&["--data-placement", "host", "--prefetch", "3"])]
#[case(&["--prefetch", "0"])]
fn loading_changes_no_result(#[case] loading: &[&str]) {
    let folder = tempdir().expect("a temporary folder");
    let loss = |loading: &[&str]| {
        let output = amp(folder.path())
            .args(["verify", "--device", "cpu", "--threads", "1", "--epochs", "1"])
            .args(["--precision", "32-true", "--format", "json"])
            .args(loading)
            .output()
            .expect("the binary runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        report["runs"][0]["loss"].as_f64().expect("a loss")
    };
    assert_eq!(loss(loading), loss(&["--data-placement", "device"]));
}

/// What is monitored goes to the logs; of it the table shows what is one value for the run.
#[test]
fn monitors_fill_the_logs_and_not_the_table() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["train", "--device", &device(), "--epochs", "2", "--log-every-n-steps", "10"])
        .args(["--monitor", "memory,speed,lr,gradients"])
        .args(LOGS)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows = fs::read_to_string(folder.path().join("log.csv")).expect("the log");
    let named = |name: &str| rows.lines().filter(|row| row.contains(&format!(",{name},"))).count();
    for name in ["memory_peak_mib", "epoch_seconds", "batch_ms", "batch_ms_p95"] {
        assert_eq!(named(name), 2, "{name}, of each epoch");
    }
    assert_eq!(named("lr-AdamW"), 4, "of steps 10 to 40");
    assert_eq!(named("grad_norm"), 4);
    for statistic in ["grad_norm", "grad_nan", "grad_inf", "grad_zero"] {
        assert_eq!(named(&format!("{statistic}/model.0.weight")), 6, "steps and epochs");
    }
    let printed = text(&output.stdout);
    let header = printed.lines().find(|line| line.starts_with("epoch ")).expect("a header");
    assert!(header.contains("memory_peak_mib") && header.contains("batch_ms"), "{header}");
    assert!(!header.contains('/') && header.split_whitespace().count() < 15, "{header}");
}

/// `--trace` alone measures every step, with `--profile` those that it asks for; both print times.
#[rstest]
#[case(&[], 46)]
#[case(&["--profile", "10"], 5)]
fn a_trace_holds_the_measured_steps(#[case] profile: &[&str], #[case] steps: usize) {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["train", "--device", &device(), "--epochs", "2", "--trace", "trace.json"])
        .args(profile)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let trace = fs::read(folder.path().join("trace.json")).expect("the trace");
    let trace: Vec<Value> = serde_json::from_slice(&trace).expect("a JSON array");
    let host = trace.iter().filter(|event| event["name"] == "step" && event["pid"] == 2);
    assert_eq!(host.count(), steps);
    // The first is left out of the means.
    let printed = text(&output.stdout);
    assert!(printed.contains(&format!("\n{} profiled steps (", steps - 1)), "{printed}");
}

#[test]
fn every_precisions_phases_are_shown_when_asked_for() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["verify", "--device", &device(), "--epochs", "1", "--precision", "bf16-mixed"])
        .args(["--profile", "5"])
        .output()
        .expect("the binary runs");
    let printed = text(&output.stdout);
    // Steps 0, 5, 10, 15 and 20 of 23, less the first.
    for precision in ["32-true", "bf16-mixed"] {
        let title = format!("\n{precision}: 4 profiled steps (");
        assert!(printed.contains(&title), "{printed}");
    }
}
