//! `--memory-budget`: the peak that is measured keeps to it, and the figures stay.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::support::{amp, refusal, text};

/// The runs of one epoch of the model with six wide layers.
fn runs(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = amp(folder)
        .args(["verify", "--device", "cpu", "--model", "MemoryEfficientModel", "--epochs", "1"])
        .args(["--batch-size", "512", "--precision", "bf16-mixed", "--format", "json", "--quiet"])
        .args(["--threads", "1"])
        .args(arguments)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let comparison: Value = serde_json::from_slice(&output.stdout).expect("a JSON object");
    comparison["runs"].as_array().expect("runs").clone()
}

#[test]
fn every_run_keeps_to_the_budget_with_the_same_figures() {
    let folder = tempdir().expect("a temporary folder");
    let free = runs(folder.path(), &["--set", "use_checkpointing=false"]);
    let tight = runs(folder.path(), &["--memory-budget", "4.4MB"]);
    assert_eq!((free.len(), tight.len()), (2, 2));
    for (free, tight) in free.iter().zip(&tight) {
        let peak = |run: &Value| run["peak_memory_bytes"].as_u64().expect("bytes");
        assert!(peak(free) > 4_400_000 && peak(tight) <= 4_400_000, "{free} {tight}");
        for figure in ["precision", "accuracy", "loss"] {
            assert_eq!(free[figure], tight[figure], "{figure}");
            assert!(!free[figure].is_null(), "{figure}");
        }
    }
}

#[test]
fn training_says_what_is_checkpointed() {
    let folder = tempdir().expect("a temporary folder");
    let output = amp(folder.path())
        .args(["train", "--device", "cpu", "--model", "MemoryEfficientModel", "--epochs", "1"])
        .args(["--batch-size", "512", "--quiet", "--memory-budget", "4.4MB"])
        .output()
        .expect("the binary runs");
    let said = text(&output.stdout);
    let line = said.lines().find(|line| line.starts_with("memory: ")).expect("a line");
    assert!(line.contains("of 4.2 MiB are needed, "), "{line}");
    assert!(line.contains(" are kept free by checkpointing `layers."), "{line}");
}

/// A failure of one of several runs is refused as one of the only run is.
#[test]
fn a_budget_that_one_precision_exceeds_is_refused() {
    let folder = tempdir().expect("a temporary folder");
    let mut command = amp(folder.path());
    command.args(["verify", "--device", "cpu", "--epochs", "1", "--memory-budget", "64KiB"]);
    let output = command.args(["--quiet"]).output().expect("the binary runs");
    let line = refusal(&output);
    let expected = "in `MixedPrecisionDemo under 32-true`: the memory budget is 65536 bytes, but a";
    assert!(line.contains(expected), "{line}");
}
