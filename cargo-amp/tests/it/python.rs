//! Tests that the Python packages for a project's tests are downloaded only by `cargo amp test`,
//! and only once. A script replaces pip.

use std::fs;
use std::path::Path;

use crate::support::{Checkout, assert_refused, assert_succeeded, output, stderr, stdout};

/// Creates a project whose tests need Python packages.
fn asking() -> Checkout {
    let project = Checkout::new();
    let manifest = fs::read_to_string(project.path("Cargo.toml")).expect("written");
    let asks = "[workspace.metadata.amp]\n\
                test-python-packages = [\"tensorboard==2.20.0\", \"numpy<3\"]\n";
    project.write("Cargo.toml", &(manifest + asks));
    project
}

/// Returns the process id and the arguments of each cargo that built the tests while pip ran.
fn builds(project: &Checkout) -> Vec<(u32, String)> {
    let log = fs::read_to_string(project.path("pip.log.cargo")).unwrap_or_default();
    let read = |line: &str| {
        let (id, arguments) = line.split_once(' ').expect("an id and arguments");
        (id.parse().expect("an id"), arguments.to_owned())
    };
    log.lines().map(read).collect()
}

/// Returns the requirements that were passed to pip, one entry for each run of pip.
fn fetches(project: &Checkout) -> Vec<String> {
    let log = fs::read_to_string(project.path("pip.log.tensorboard")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

fn is_whole(project: &Checkout) -> bool {
    project.path(".amp/python/tensorboard").is_dir()
        && project.path(".amp/python/amp-stamp").is_file()
        && !project.path(".amp/python.partial").exists()
}

#[test]
fn only_the_tests_fetch_the_packages_and_only_once() {
    let project = asking();
    assert_succeeded(&output(&mut project.cargo_amp(&["setup"])));
    let runs_of_setup = project.pip_runs();
    output(&mut project.cargo_amp(&["verify"]));
    assert_eq!(fetches(&project), Vec::<String>::new());

    // The script that replaces cargo exits with 7.
    let first = output(&mut project.cargo_amp(&["test"]));
    assert_eq!(first.status.code(), Some(7), "{}", stderr(&first));
    assert!(is_whole(&project));
    let said = "fetching tensorboard==2.20.0, numpy<3 for the tests into .amp/python, once";
    assert!(stderr(&first).contains(said), "{}", stderr(&first));
    assert!(stdout(&first).starts_with("cargo test"), "{}", stdout(&first));
    let [asked] = &fetches(&project)[..] else { panic!("{:?}", fetches(&project)) };
    assert!(asked.ends_with("tensorboard==2.20.0 numpy<3"), "{asked}");

    let second = output(&mut project.cargo_amp(&["test"]));
    assert_eq!(stderr(&second), "");
    assert_eq!(fetches(&project).len(), 1);
    // The tests were built only once while pip ran, in the first run.
    let [(_, built)] = &builds(&project)[..] else { panic!("{:?}", builds(&project)) };
    assert_eq!(built, "test --workspace --no-run --quiet");
    assert_eq!(project.pip_runs(), runs_of_setup, "libtorch was fetched by setup alone");
    // The variable `AMP_TEST_PYTHON` contains the folder of the packages.
    let line = format!("python {}\n", project.path(".amp/python").display());
    assert!(stdout(&second).contains(&line), "{}", stdout(&second));
}

#[test]
fn a_project_without_packages_fetches_none() {
    let project = Checkout::new();
    let run = output(&mut project.cargo_amp(&["test"]));
    assert_eq!(run.status.code(), Some(7), "{}", stderr(&run));
    assert!(stdout(&run).contains("python unset\n"), "{}", stdout(&run));
    assert!(!project.path(".amp").exists());
}

#[test]
fn incomplete_packages_are_fetched_again() {
    let project = asking();
    project.write(".amp/python.partial/packages/half", "a file");
    project.write(".amp/python/tensorboard/old", "a file");
    project.write(".amp/python/amp-stamp", "tensorboard==2.19.0\n");
    output(&mut project.cargo_amp(&["test"]));
    assert!(is_whole(&project));
    assert!(!project.path(".amp/python/tensorboard/old").exists());
}

#[test]
fn a_failed_fetch_is_one_line_and_leaves_the_old_packages() {
    let project = asking();
    project.write(".amp/python/tensorboard/old", "a file");
    let run = output(project.cargo_amp(&["test"]).env("FAKE_TENSORBOARD", "network"));
    let parts =
        ["the tests' Python packages could not be fetched", "check the network", "cargo test"];
    assert_refused(&run, &parts);
    assert!(project.path(".amp/python/tensorboard/old").exists());
    assert!(!project.path(".amp/python.partial").exists());
}

#[test]
fn tests_that_do_not_build_are_not_run() {
    let project = asking();
    let run = output(project.cargo_amp(&["test", "-p", "mine"]).env("FAKE_TEST_BUILD", "fails"));
    assert_eq!((run.status.code(), stdout(&run)), (Some(101), String::new()), "{}", stderr(&run));
    let [(_, built)] = &builds(&project)[..] else { panic!("{:?}", builds(&project)) };
    assert_eq!(built, "test --package mine --no-run --quiet");
}

/// If pip fails, cargo-amp ends the build that runs at the same time, so that no output of cargo
/// follows the error.
#[test]
fn a_failed_fetch_ends_the_build() {
    let project = asking();
    let mut command = project.cargo_amp(&["test"]);
    command.env("FAKE_TENSORBOARD", "network").env("FAKE_TEST_BUILD", "endless");
    assert_refused(&output(&mut command), &["could not be fetched"]);
    let [(id, _)] = builds(&project)[..] else { panic!("{:?}", builds(&project)) };
    assert!(!Path::new(&format!("/proc/{id}")).exists(), "cargo still runs");
}
