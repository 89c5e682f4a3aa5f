//! A regression from the gate's exit code to the attribute that mends it, and what else a failure
//! may be due to.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use amp_core::precision::Precision;
use amp_verify::{
    gate::{Cause, Cell, Finding, Report, Status},
    golden::{Check, Paired, Target, file_name},
};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{
    gate::schema,
    support::{amp, assert_refused, conforms, device, generator, text},
};

fn gate(folder: &Path, model: &str, arguments: &[&str]) -> Output {
    let mut command: Command = amp(folder);
    command.args(["gate", "--model", model, "--precision", "16-mixed", "--json", "gate.json"]);
    command.args(["--device", &device()]).args(arguments);
    command.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY");
    command.output().expect("the binary runs")
}

fn report(folder: &Path) -> Report {
    let text = fs::read_to_string(folder.join("gate.json")).expect("the file was written");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    conforms(&json, &schema());
    serde_json::from_value(json).expect("a report")
}

fn cell(folder: &Path) -> Cell {
    report(folder).models.remove(0).cells.remove(0)
}

fn finding(folder: &Path) -> Finding {
    cell(folder).finding.expect("a finding")
}

/// Caught, located, and green again by the policy that was written and by the attribute that was
/// printed: [`fixtures::models::MendedLayerNorm`] is the model with it.
#[test]
fn a_planted_regression_is_caught_located_and_mended() {
    let folder = tempdir().expect("a folder");
    let files = ["--junit", "g.xml", "--markdown", "g.md", "--fix", "policy.json"];
    let sick = gate(folder.path(), "PlantedLayerNorm", &files);
    let out = text(&sick.stdout);
    assert_eq!(sick.status.code(), Some(1), "{out}{}", text(&sick.stderr));

    let found = finding(folder.path());
    assert_eq!((found.seed, found.cause), (42, Cause::Precision), "{found:?}");
    assert_eq!(found.layer.as_deref(), Some("norm2"));
    assert!(found.layer_error.is_some_and(|error| error > 0.5), "{found:?}");
    assert_eq!((found.modules.as_slice(), found.one_minimal), (&["norm2".to_owned()][..], true));
    assert_eq!(found.attribute, "    #[precision(fp32)]\n    norm2: …");
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("a file");
    for text in [out, read("g.xml"), read("g.md")] {
        assert!(text.contains(&found.text) && text.contains(&found.attribute), "{text}");
    }

    let policy = gate(folder.path(), "PlantedLayerNorm", &["--policy", "policy.json"]);
    assert_eq!(policy.status.code(), Some(0), "{}", text(&policy.stdout));
    assert_eq!(cell(folder.path()).finding, None);
    let mended = gate(folder.path(), "MendedLayerNorm", &[]);
    assert_eq!(mended.status.code(), Some(0), "{}", text(&mended.stdout));
}

/// A run that cannot be repeated is told from one that can: what is remembered of it was changed.
#[test]
fn a_run_that_cannot_be_repeated_is_nondeterministic() {
    let folder = tempdir().expect("a folder");
    let first = gate(folder.path(), "PrecisionTestModel", &[]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stdout));
    for entry in folder.path().join(".amp/cache").read_dir().expect("the cache") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("an outcome");
        let mut outcome: Value = serde_json::from_str(&text).expect("JSON");
        if outcome["metric"].is_number() && outcome["observed"]["matmul"] == json!(["float16"]) {
            outcome["metric"] = 0.2.into();
            fs::write(&path, outcome.to_string()).expect("a file");
        }
    }
    let second = gate(folder.path(), "PrecisionTestModel", &[]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second.stdout));
    let found = finding(folder.path());
    assert_eq!((found.cause, found.modules.len()), (Cause::Nondeterministic, 0), "{found:?}");
    gate(folder.path(), "PrecisionTestModel", &["--no-diagnose"]);
    assert_eq!(cell(folder.path()).finding, None);
}

/// Where 32-true is not its golden's, the environment comes before the precision.
#[test]
fn a_baseline_that_moved_is_the_environment() {
    let folder = tempdir().expect("a folder");
    let model = "PlantedLayerNorm";
    let check =
        Check { seeds: vec![42, 43], precisions: vec![Precision::F16Mixed], ..Check::default() };
    let mut golden = {
        let _generator = generator();
        Target::fixture(model).check(check).golden().expect("a golden")
    };
    for (moved, expected) in [(0.0, Cause::Precision), (5.0, Cause::Environment)] {
        let baseline = golden.runs.get_mut("32-true").expect("the baseline");
        baseline.loss = baseline.loss.map(|loss| loss + moved);
        // Between two seeds nothing can be said of a spread.
        for run in golden.runs.values_mut() {
            run.paired = run.paired.map(|paired| Paired { s: 1e-3, loss_s: 1e-3, ..paired });
        }
        let name = format!("{}.snap", file_name(model, golden.fingerprint.as_ref()));
        let body = serde_json::to_string(&golden).expect("JSON");
        fs::write(folder.path().join(name), body).expect("a file");
        // As the golden was taken.
        let deterministic = if device() == "cpu" { &[][..] } else { &["--deterministic"] };
        let output = gate(folder.path(), model, &[&["--goldens", "."], deterministic].concat());
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        let found = finding(folder.path());
        assert_eq!(found.cause, expected, "{found:?}\n{}", text(&output.stdout));
    }
}

#[rstest]
#[case::several(&["--policy", "p.json", "--model", "RobustAMPModel"], "policy: a policy is for one model")]
#[case::fix_for_several(&["--fix", "p.json", "--model", "RobustAMPModel"], "fix: a policy is for one model")]
#[case::missing(&["--policy", "p.json"], "p.json: No such file")]
#[case::fix_of_nothing(&["--fix", "p.json", "--no-diagnose"], "cannot be used with")]
fn bad_options_are_refused(#[case] arguments: &[&str], #[case] expected: &str) {
    let folder = tempdir().expect("a folder");
    let mut command = amp(folder.path());
    command.args(["gate", "--device", "cpu", "--model", "PrecisionTestModel"]).args(arguments);
    assert_refused(&mut command, folder.path(), expected);
}

/// A sound model leaves no policy.
#[test]
fn nothing_is_fixed_where_nothing_fails() {
    let folder = tempdir().expect("a folder");
    let output = gate(folder.path(), "MendedLayerNorm", &["--fix", "policy.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("no policy was written"));
    assert!(!folder.path().join("policy.json").exists());
    assert_eq!(report(folder.path()).status, Status::Pass);
}
