//! Tests that other tests in the same binary do not affect `verify!`. Also tests the messages of
//! `verify!` when training fails. The ignored tests in this file are examples of a user's tests.
//! The remaining tests run the ignored tests in a child process of this binary.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
};

use amp_core::{data::DataModule, precision::Precision, prelude::*};
use amp_verify::{
    golden::{Check, Spread, parse},
    verify,
};
use rstest::rstest;
use serde_json::json;

/// A model that uses random numbers for its initial weights, and in each step for its dropout.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(accuracy, name = acc)]
#[optimizer(adamw, lr = 1e-2)]
struct Drawn {
    #[layer(sequential(linear(8, 32), relu, dropout(0.5), linear(32, 4)))]
    body: Sequential,
}

/// A model of one linear layer that has no metric.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[optimizer(adamw, lr = 1e-2)]
struct Unjudged {
    #[layer(linear(8, 4))]
    body: Linear,
}

/// A model of one linear layer, which is compared by its F1 score.
#[derive(LightningModule)]
#[loss(cross_entropy)]
#[metric(f1, num_classes = 4)]
#[optimizer(adamw, lr = 1e-2)]
struct Scored {
    #[layer(linear(8, 4))]
    body: Linear,
}

/// Returns a data set whose examples are random and differ from call to call.
fn drawn() -> Result<DataModule> {
    let set = || -> Result<Batch> {
        let input = Tensor::f_randn([256, 8], (Kind::Float, Device::Cpu))?;
        let target = input.f_narrow(1, 0, 4)?.f_argmax(1, false)?;
        Batch::new(input, target)
    };
    Ok(DataModule::new("drawn", set()?, set()?, 32))
}

static TRAINED: AtomicBool = AtomicBool::new(false);

/// Dropping this value sets `TRAINED`. The test `noise` therefore ends even if the test `golden`
/// fails.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        TRAINED.store(true, Ordering::Relaxed);
    }
}

const IN_ONE: [Precision; 1] = [Precision::Bf16Mixed];

#[test]
#[ignore = "run by the tests of this file"]
fn golden() -> Result<()> {
    let _ended = Ended;
    verify!(Drawn, data = drawn()?, precisions = IN_ONE);
    Ok(())
}

/// Trains in the same way as `golden`. The test passes a spread (samples of the results, which
/// determine the tolerance) in `check`. This spread is so large that any result is accepted.
#[test]
#[ignore = "run by the tests of this file"]
fn with_a_spread_of_its_own() {
    let spread = Spread::parse(&spread([0.0, 1e3, 2e3])).expect("a spread");
    let check = Check { precisions: IN_ONE.to_vec(), spread: Some(spread), ..Check::default() };
    verify!(Drawn, data = drawn().expect("data"), check = check);
}

/// Uses random numbers all the time until the test `golden` has ended.
#[test]
#[ignore = "run by the tests of this file"]
fn noise() {
    while !TRAINED.load(Ordering::Relaxed) {
        drop(Tensor::randn([16], (Kind::Float, Device::Cpu)));
    }
}

/// Compares results with several goldens in one test. Two of the comparisons are in a loop.
#[test]
#[ignore = "run by the tests of this file"]
fn several() {
    for classes in [2, 4] {
        verify!(Drawn, data = drawn().expect("data"), precisions = IN_ONE, case = classes);
    }
    verify!(Drawn, data = drawn().expect("data"), precisions = IN_ONE, epochs = 1, case = "short");
}

/// Compares the results of two different runs with goldens of the same name, which is an error.
#[test]
#[ignore = "run by the tests of this file"]
fn twice() {
    for epochs in [3, 2] {
        verify!(Drawn, data = drawn().expect("data"), precisions = IN_ONE, epochs = epochs);
    }
}

#[rstest]
#[ignore = "run by the tests of this file"]
fn cases(#[values(Precision::Bf16Mixed, Precision::F16Mixed)] precision: Precision) {
    verify!(Drawn, data = drawn().expect("data"), precisions = [precision], case = precision);
}

#[test]
#[ignore = "run by the tests of this file"]
#[should_panic(expected = "has no validation examples")]
fn expected_to_fail() {
    let none = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let empty = || Batch::new(none(&[0, 8]), none(&[0]));
    let unusable = || Ok::<_, Error>(DataModule { val: empty()?.into(), ..drawn()? });
    verify!(Drawn, data = unusable().expect("data"));
}

#[test]
#[ignore = "run by the tests of this file"]
fn aborts() {
    fn data() -> DataModule {
        eprintln!("the last words");
        std::process::abort()
    }
    verify!(Drawn, data = data());
}

#[test]
#[ignore = "run by the tests of this file"]
fn panics() {
    fn data() -> DataModule {
        panic!("no data today")
    }
    verify!(Drawn, data = data());
}

#[test]
#[ignore = "run by the tests of this file"]
fn without_a_metric() {
    verify!(Unjudged, data = drawn().expect("data"));
}

#[test]
#[ignore = "run by the tests of this file"]
fn with_another_metric() {
    verify!(Scored, data = drawn().expect("data"));
}

/// Compares results with a golden on threads that do not have the name of a test. Without this name,
/// `verify!` cannot run the test in a child process, so it trains in this process.
#[test]
#[ignore = "run by the tests of this file"]
fn on_other_threads() {
    let verify = || verify!(Drawn, data = drawn().expect("data"), precisions = IN_ONE);
    for name in [None, Some("a thread of its own")] {
        let thread = std::thread::Builder::new();
        let thread = name.into_iter().fold(thread, |thread, name| thread.name(name.to_owned()));
        thread.spawn(verify).expect("a thread").join().expect("a golden");
    }
}

/// Runs the given tests of this file in parallel. Their goldens are in `folder`.
fn run(folder: &Path, tests: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.args(tests).args(["--exact", "--include-ignored", "--test-threads=3"]);
    for name in ["CI", "AMP_ANCHORS", "AMP_DEVICE", "INSTA_UPDATE", "INSTA_FORCE_PASS"] {
        command.env_remove(name);
    }
    command.env("AMP_GOLDENS", folder).env("INSTA_WORKSPACE_ROOT", folder);
    command.envs(variables.iter().copied()).output().expect("this binary runs")
}

const RECORD: [(&str, &str); 1] = [("AMP_ANCHORS", "write")];

#[track_caller]
fn passed(output: &Output, tests: usize) {
    let said = said(output);
    assert!(output.status.success() && said.contains(&format!("{tests} passed")), "{said}");
}

#[track_caller]
fn failed(output: &Output, expected: &[&str]) {
    let said = said(output);
    assert!(!output.status.success(), "{said}");
    for text in expected {
        assert!(said.contains(text), "`{text}` is not in {said}");
    }
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    let mut names: Vec<String> = names.collect::<Result<_, _>>().expect("names");
    names.sort();
    names
}

/// If another test uses random numbers all the time, the result of `verify!` does not change, even
/// if the data is random. The text of the golden stays exactly the same.
#[test]
fn a_test_that_draws_does_not_change_a_golden() {
    let folder = tempfile::tempdir().expect("a folder");
    let exact = [("INSTA_REQUIRE_FULL_MATCH", "1")];
    passed(&run(folder.path(), &["golden"], &RECORD), 1);
    passed(&run(folder.path(), &["golden"], &exact), 1);
    passed(&run(folder.path(), &["golden", "noise"], &exact), 2);
}

/// The first run creates the folder, and records the golden and its anchor (the first recording).
/// The next run compares its results with them. In CI, or if `INSTA_UPDATE` is set, a run without a
/// golden fails. The message then names the missing file and the command that records it.
#[test]
fn the_first_run_records_a_golden_but_not_in_ci() {
    let root = tempfile::tempdir().expect("a folder");
    let folder = root.path().join("tests/goldens");
    for variables in [&[("CI", "true")], &[("INSTA_UPDATE", "always")], &[("INSTA_UPDATE", "no")]] {
        // Loading the data aborts the process. If the process prints a message instead, it has not
        // loaded the data.
        let missing = run(&folder, &["aborts"], variables);
        let command = "record it with `AMP_ANCHORS=write cargo test aborts`";
        failed(&missing, &["NOT COMPARABLE: there is no golden", "drawn_cpu.snap yet", command]);
        assert!(!root.path().join("tests").exists(), "nothing is written");
    }
    let recorded = run(&folder, &["golden"], &[]);
    passed(&recorded, 1);
    for says in ["drawn_cpu is recorded for the first time", "`cargo amp margins --what goldens`"] {
        assert!(said(&recorded).contains(says), "{}", said(&recorded));
    }
    let both = ["drawn_cpu.anchor.json", "drawn_cpu.snap"];
    assert_eq!(files(&folder), both);
    passed(&run(&folder, &["golden"], &[("CI", "true")]), 1);
    assert_eq!(files(&folder), both);

    fs::remove_file(folder.join(both[0])).expect("the anchor");
    let bare = run(&folder, &["aborts"], &[]);
    failed(&bare, &["the golden has no anchor", "`AMP_ANCHORS=write cargo test aborts`"]);
    let golden = fs::read_to_string(folder.join(both[1])).expect("the golden");
    let other = golden.replace("\"libtorch\": \"", "\"libtorch\": \"0.");
    assert_ne!(golden, other);
    fs::write(folder.join(both[1]), other).expect("a file");
    let other = run(&folder, &["aborts"], &RECORD);
    failed(&other, &["NOT COMPARABLE: libtorch is 0."]);
}

#[test]
fn each_golden_of_a_test_has_its_own_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let tests = ["several", "cases::precision_1_Precision__Bf16Mixed"];
    passed(&run(folder.path(), &tests, &RECORD), 2);
    let cases = ["2", "4", "bf16_mixed", "short"];
    let names =
        cases.map(|case| ["anchor.json", "snap"].map(|end| format!("drawn_cpu_{case}.{end}")));
    assert_eq!(files(folder.path()), names.concat());
    passed(&run(folder.path(), &tests, &[]), 2);
    // The file `drawn_cpu_4.snap` is the golden of the loop's second iteration.
    let path = folder.path().join("drawn_cpu_4.snap");
    let golden = fs::read_to_string(&path).expect("the golden");
    let moved = golden.replacen("\"skipped_steps\": 0", "\"skipped_steps\": 9", 1);
    assert_ne!(golden, moved);
    fs::write(&path, moved).expect("a file");
    failed(&run(folder.path(), &tests, &[]), &["skipped_steps", "drawn_cpu_4", "1 passed"]);
    let both = run(folder.path(), &["twice", "expected_to_fail"], &RECORD);
    failed(&both, &["test twice ... FAILED", "1 passed; 1 failed"]);
}

/// If the training process fails, the test fails with the cause and with the process's output.
#[rstest]
#[case("aborts", &["SIGABRT", "before it had results", "the last words"])]
#[case("panics", &["before it had results", "no data today"])]
#[case("without_a_metric", &["but does not log `val_acc`", "Unjudged logs `val_loss`. Name a"])]
#[case("with_another_metric", &["logs `val_f1`, `val_loss`", "with `metric`"])]
fn a_failed_training_is_explained(#[case] test: &str, #[case] expected: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    // `verify!` starts a child process only if there are other tests, so a second test runs too.
    let output = run(folder.path(), &[test, "expected_to_fail"], &RECORD);
    failed(&output, expected);
    failed(&output, &["1 passed; 1 failed"]);
    assert_eq!(files(folder.path()), Vec::<String>::new());
}

/// `verify!` trains in the process of the test if no other test runs, and on threads that do not
/// have the name of a test.
#[test]
fn without_other_tests_training_needs_no_child_process() {
    let folder = tempfile::tempdir().expect("a folder");
    passed(&run(folder.path(), &["golden"], &RECORD), 1);
    let exact = ("INSTA_REQUIRE_FULL_MATCH", "1");
    passed(&run(folder.path(), &["on_other_threads", "golden"], &[exact]), 2);
}

/// A golden that was recorded on a CPU with fewer vector instructions is reproduced to the last
/// digit: training runs in a process that uses only the kernels for those instructions.
#[test]
fn a_golden_of_older_kernels_is_compared_with_these_kernels() {
    let folder = tempfile::tempdir().expect("a folder");
    let older = [("ATEN_CPU_CAPABILITY", "default"), ("ONEDNN_MAX_CPU_ISA", "SSE41")];
    let record = [&older[..], &[("MKL_ENABLE_INSTRUCTIONS", "SSE4_2")], &RECORD].concat();
    passed(&run(folder.path(), &["golden"], &record), 1);
    let golden = fs::read_to_string(folder.path().join("drawn_cpu.snap")).expect("the golden");
    assert!(golden.contains("\"capability\": \"default\""), "{golden}");
    passed(&run(folder.path(), &["golden"], &[("INSTA_REQUIRE_FULL_MATCH", "1")]), 1);
}

/// Returns the text of a spread file. It contains these samples for each measured value.
fn spread(samples: [f64; 3]) -> String {
    let figures = json!({ "accuracy": samples, "loss": samples, "peak_memory_bytes": samples });
    let samples = json!({ "32-true": figures, "bf16-mixed": figures });
    json!({ "recorded_by": "a test", "examples": 256, "samples": samples }).to_string()
}

/// A spread file next to the golden (the recorded results) determines the tolerance, whether
/// training runs in a child process or in the test's process. If the check contains a spread, this
/// spread replaces the one in the file.
#[rstest]
fn a_spread_next_to_a_golden_is_its_tolerance(#[values("golden", "noise")] beside: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    let tests: &[&str] = if beside == "golden" { &["golden"] } else { &["golden", beside] };
    passed(&run(path, tests, &RECORD), tests.len());
    // The spread is larger than the differences between runs on one machine, and smaller than the
    // differences between seeds.
    let golden = fs::read_to_string(path.join("drawn_cpu.snap")).expect("the golden");
    let loss = parse(&golden).expect("a golden").runs["bf16-mixed"].loss.expect("a loss");
    let moved =
        golden.replacen(&format!("\"loss\": {loss},"), &format!("\"loss\": {},", loss * 1.0001), 1);
    assert_ne!(golden, moved);
    fs::write(path.join("drawn_cpu.snap"), moved).expect("a file");
    passed(&run(path, tests, &[]), tests.len());

    let file = path.join("drawn_cpu.spread.json");
    fs::write(&file, spread([1.0; 3])).expect("a file");
    failed(&run(path, tests, &[]), &["loss", "bf16-mixed", "1 failed"]);
    passed(&run(path, &["with_a_spread_of_its_own"], &[]), 1);
    fs::write(&file, spread([0.0, 1e3, 2e3])).expect("a file");
    passed(&run(path, tests, &[]), tests.len());
}

/// The spread determines the tolerance of the golden (the recorded results), and also the budget of
/// its anchor (the first recording).
#[test]
fn an_anchor_has_its_budget_from_the_spread() {
    let folder = tempfile::tempdir().expect("a folder");
    let budget = || {
        passed(&run(folder.path(), &["golden"], &RECORD), 1);
        let path = folder.path().join("drawn_cpu.anchor.json");
        let anchor = fs::read_to_string(&path).expect("the anchor");
        fs::remove_file(path).expect("the anchor");
        let anchor: serde_json::Value = serde_json::from_str(&anchor).expect("JSON");
        anchor["runs"]["bf16-mixed"]["loss"]["budget"].as_f64().expect("a budget")
    };
    let of_its_seeds = budget();
    fs::write(folder.path().join("drawn_cpu.spread.json"), spread([0.0, 1e3, 2e3]))
        .expect("a file");
    let recorded = budget();
    assert!(of_its_seeds < 10.0 && recorded > 1e3, "{of_its_seeds}, {recorded}");
}

/// A damaged file of recorded differences between CPUs (the spread) is reported before training,
/// with its path and the remedy. If training began, its data set would abort the process.
#[rstest]
#[case("{", "recorded spread: EOF")]
#[case(&spread([1.0; 3]).replace("1.0,", ""), "32-true has fewer than three samples")]
fn a_damaged_spread_is_named(#[case] text: &str, #[case] cause: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    passed(&run(folder.path(), &["golden"], &RECORD), 1);
    let file = folder.path().join("drawn_cpu.spread.json");
    fs::write(&file, text).expect("a file");
    let fix = "delete the file, or record it again with `cargo amp margins --what goldens`";
    let output = run(folder.path(), &["aborts"], &RECORD);
    let said = said(&output);
    let line = said.lines().find(|line| line.contains("spread.json")).unwrap_or_default();
    for part in [file.to_str().expect("a path"), cause, fix] {
        assert!(line.contains(part), "`{part}` is not in `{line}`: {said}");
    }
    assert!(!output.status.success());
}
