//! Tests that `cargo amp test` divides the tests of a project into parts, and runs two at a time.

use std::fs;
use std::process::Stdio;

use crate::support::{Checkout, output, stderr, stdout, wait_until};

/// Creates a project with unit tests, two integration tests and documentation tests.
fn divisible() -> Checkout {
    let project = Checkout::new();
    project.write("src/lib.rs", "//! A library.\n");
    project.write("tests/first.rs", "");
    project.write("tests/second.rs", "");
    project
}

/// Returns the arguments of each run of cargo, as logged in the project's folder `parts`. Leaves out
/// the arguments that several runs have in common.
fn calls(project: &Checkout) -> Vec<String> {
    let log = fs::read_to_string(project.path("parts/log")).unwrap_or_default();
    let short = |line: &str| {
        let line = line.replace("test --workspace ", "");
        line.replace(" --message-format=json-render-diagnostics", "")
    };
    log.lines().map(short).collect()
}

const PARTS: [&str; 4] = ["--lib --bin amp", "--test first", "--test second", "--doc"];

#[test]
fn parts_run_two_at_a_time_and_are_printed_in_order() {
    let project = divisible();
    project.write("parts/log", "");
    let mut command = project.cargo_amp(&["test", "--", "--nocapture"]);
    command.env("FAKE_PARTS", project.path("parts"));
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cargo-amp runs");
    // The part `first` leaves a process running that keeps the output pipe open. cargo-amp must end
    // nevertheless.
    wait_until("cargo-amp ends", || child.try_wait().is_ok_and(|status| status.is_some()));
    let run = child.wait_with_output().expect("it has ended");
    project.write("parts/end", "");
    // Two parts fail. cargo-amp exits with cargo's exit code for the first of them, which is 3.
    assert_eq!(run.status.code(), Some(3), "{}", stderr(&run));
    let last = "error: tests failed in second, documentation tests";
    assert_eq!(stderr(&run).lines().last(), Some(last));
    let each = |part| {
        let call = format!("cargo test --workspace --no-fail-fast {part} -- --nocapture");
        ["ready", "begin", "end"].map(|line| call.replace("cargo", line))
    };
    let expected: Vec<_> = PARTS.into_iter().flat_map(each).collect();
    assert_eq!(stdout(&run).lines().collect::<Vec<_>>(), expected);
    let calls = calls(&project);
    assert_eq!(calls[0], "--no-run");
    let mut started: Vec<_> = calls[1..].to_vec();
    started.sort();
    let mut wanted = PARTS.map(|part| format!("--no-fail-fast {part} -- --nocapture"));
    wanted.sort();
    assert_eq!(started, wanted);
}

/// cargo-amp calls `cargo test` once, without parts, on CUDA (two parts would share the device),
/// and if no options select the same tests as a plain `cargo test`.
#[test]
fn tests_that_cannot_be_divided_run_in_one_cargo() {
    let one_call = |project: &Checkout, arguments: &[&str]| {
        let run = output(&mut project.cargo_amp(arguments));
        let calls = stdout(&run).lines().filter(|line| line.starts_with("cargo test")).count();
        assert_eq!((run.status.code(), calls), (Some(7), 1), "{}", stdout(&run));
        assert!(stdout(&run).starts_with("cargo test --workspace --no-fail-fast\n"));
    };
    one_call(&divisible(), &["test", "--device", "cuda"]);
    for odd in [
        "[lib]\ntest = false\n",
        "[features]\nslow = []\n[[test]]\nname = \"first\"\nrequired-features = [\"slow\"]\n",
    ] {
        let project = divisible();
        let manifest = fs::read_to_string(project.path("Cargo.toml")).expect("written");
        project.write("Cargo.toml", &(manifest + odd));
        one_call(&project, &["test"]);
    }
}

/// Targets with `test = false` or `doctest = false` belong to no part.
#[test]
fn targets_without_tests_are_left_out() {
    let project = divisible();
    project.write("parts/log", "");
    project.write("examples/shows.rs", "fn main() {}\n");
    let manifest = fs::read_to_string(project.path("Cargo.toml")).expect("written");
    let more = "[lib]\ndoctest = false\n[[test]]\nname = \"second\"\ntest = false\n\
                [[bin]]\nname = \"amp\"\ntest = false\n";
    project.write("Cargo.toml", &(manifest + more));
    let run = output(project.cargo_amp(&["test"]).env("FAKE_PARTS", project.path("parts")));
    project.write("parts/end", "");
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let mut calls = calls(&project);
    calls.sort();
    assert_eq!(calls, ["--no-fail-fast --lib", "--no-fail-fast --test first", "--no-run"]);
}

/// If some libraries have documentation tests, the others are excluded from that part with
/// `--exclude`.
#[test]
fn libraries_without_documentation_tests_are_excluded() {
    let project = divisible();
    project.write("parts/log", "");
    let manifest = fs::read_to_string(project.path("Cargo.toml")).expect("written");
    project.write("Cargo.toml", &(manifest + "members = [\"silent\"]\n"));
    project.write("silent/src/lib.rs", "//! A library.\n");
    project.write(
        "silent/Cargo.toml",
        "[package]\nname = \"silent\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
         [lib]\ndoctest = false\n",
    );
    output(project.cargo_amp(&["test"]).env("FAKE_PARTS", project.path("parts")));
    project.write("parts/end", "");
    let calls = calls(&project);
    let of_docs: Vec<_> = calls.iter().filter(|call| call.contains("--doc")).collect();
    assert_eq!(of_docs, ["--no-fail-fast --doc --exclude silent"]);
}
