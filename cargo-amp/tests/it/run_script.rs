//! Tests of the packed `run.sh`. The packed binaries are scripts, and a folder that looks like
//! Python's torch replaces torch.

use std::fs;
use std::process::Output;

use crate::packing::{pack, workspace};
use crate::support::{Checkout, assert_refused, assert_succeeded, output, stderr, stdout};

/// Creates a packed workspace, with torch in the folder `site`.
fn packed(arguments: &[&str]) -> Checkout {
    let project = workspace();
    assert_succeeded(&output(&mut pack(&project, arguments)));
    project.write("site/torch/__init__.py", "");
    project.write("site/torch/version.py", "__version__ = '2.11.0+cu130'\n");
    project.write("site/nvidia/cu13/lib/libcudart.so", "");
    project.write("site/nvidia/cudnn/part/lib/libcudnn.so", "");
    project
}

/// Runs `run.sh` from a folder outside the packed one.
fn run(project: &Checkout, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = std::process::Command::new(project.path("dist/run.sh"));
    command.args(arguments).current_dir(project.path("notes"));
    command.env("PYTHONPATH", project.path("site")).env("LD_LIBRARY_PATH", "/users/own");
    for name in ["CI", "AMP_DEVICE", "AMP_GOLDENS", "AMP_ANCHORS", "AMP_PROJECT", "INSTA_UPDATE"] {
        command.env_remove(name);
    }
    output(command.envs(variables.iter().copied()))
}

#[track_caller]
fn assert_lines(output: &Output, lines: &[&str]) {
    let found = stdout(output);
    for line in lines {
        assert!(found.lines().any(|l| l == *line), "`{line}`: {found}{}", stderr(output));
    }
}

/// Returns the packed executables that ran, in order.
fn ran(output: &Output) -> Vec<String> {
    let lines = stdout(output);
    let names = lines.lines().filter_map(|line| line.strip_prefix("== "));
    names.map(String::from).collect()
}

#[test]
fn a_command_runs_the_amp_binary_in_the_users_folder() {
    let project = packed(&["--bin-only"]);
    let output = run(&project, &["verify", "--device", "cuda"], &[]);
    assert_succeeded(&output);
    let path = |folder: &str| project.path(folder).display().to_string();
    assert_lines(
        &output,
        &[
            "bin amp verify --device cuda",
            &format!("AMP_PROJECT={}", path("dist")),
            &format!("AMP_BINARY={}", path("dist/bin/amp")),
            &format!("PWD={}", path("notes")),
            &format!(
                "LD_LIBRARY_PATH={0}/torch/lib:{0}/nvidia/cu13/lib:{0}/nvidia/cudnn/part/lib:\
                 /users/own",
                path("site")
            ),
            "AMP_DEVICE=unset",
        ],
    );
    // `run.sh` returns the exit code of the binary.
    assert_eq!(run(&project, &["gate"], &[("FAILS", "amp")]).status.code(), Some(1));
    for (arguments, kind) in [(&["test"][..], "tests"), (&["criterion"], "benches")] {
        let refused = run(&project, arguments, &[]);
        assert_refused(&refused, &[&format!("no {kind} were packed"), "--bin-only"]);
    }
}

#[test]
fn a_torch_of_another_version_is_refused() {
    let project = packed(&["--bin-only"]);
    project.write("site/torch/version.py", "__version__ = '2.10.0'\n");
    assert_refused(&run(&project, &["verify"], &[]), &["torch is 2.10.0", "torch==2.11.0"]);
}

#[test]
fn every_test_runs_against_the_goldens_of_its_package() {
    let project = packed(&[]);
    let all = ["checks/checks", "checks/checks-lib", "mine/golden", "mine/mine-lib"];
    let output = run(&project, &["test", "--exact", "net"], &[]);
    assert_succeeded(&output);
    assert_eq!(ran(&output), all);
    let dist = project.path("dist").display().to_string();
    assert_lines(
        &output,
        &[
            "test golden --exact net",
            "lib mine --exact net",
            "AMP_DEVICE=cuda",
            "RUST_TEST_THREADS=1",
            "CUBLAS_WORKSPACE_CONFIG=:4096:8",
            "INSTA_UPDATE=no",
            "AMP_ANCHORS=unset",
            &format!("INSTA_WORKSPACE_ROOT={dist}"),
            &format!("AMP_GOLDENS={dist}/tests/goldens"),
            &format!("AMP_GOLDENS={dist}/checks/tests/goldens"),
            &format!("AMP_PROJECT={dist}"),
            &format!("PWD={dist}"),
            &format!("PWD={dist}/checks"),
        ],
    );

    // Some test binaries fail, and the folder of their package is missing. `run.sh test` still runs
    // all binaries, and lists those that failed at the end.
    fs::remove_dir_all(project.path("dist/checks")).expect("packed");
    let failed = run(&project, &["test"], &[("FAILS", "checks"), ("AMP_DEVICE", "cpu")]);
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(ran(&failed), all);
    assert_eq!(stderr(&failed), "error: failed in checks/checks checks/checks-lib\n");
    assert_lines(&failed, &["AMP_DEVICE=cpu"]);
}

#[test]
fn goldens_are_recorded_by_the_named_binaries() {
    let project = packed(&[]);
    fs::remove_dir_all(project.path("dist/tests")).expect("packed");
    let output = run(&project, &["golden-record", "golden"], &[("CI", "true")]);
    assert_succeeded(&output);
    assert_eq!(ran(&output), ["mine/golden"]);
    assert_lines(&output, &["INSTA_UPDATE=always", "AMP_ANCHORS=write", "CI=unset"]);
    assert!(project.path("dist/tests/goldens").is_dir());
    let all = run(&project, &["golden-record"], &[]);
    assert_eq!(ran(&all).len(), 4);
    // `run.sh` also lists goldens that existed before, such as this one, so that the user can copy
    // all files.
    assert!(stdout(&all).contains("other_cpu.snap"), "{}", stdout(&all));
    let refused = run(&project, &["golden-record", "absent"], &[]);
    assert_refused(&refused, &["there is no absent in "]);
}

#[test]
fn a_benchmark_runs_by_name_or_if_it_is_the_only_one() {
    let project = packed(&[]);
    for arguments in [&["criterion"][..], &["criterion", "speed"]] {
        let output = run(&project, arguments, &[]);
        assert_succeeded(&output);
        assert_lines(&output, &["bench speed --bench", "AMP_DEVICE=cuda"]);
    }
    assert_refused(&run(&project, &["criterion", "absent"], &[]), &["there is no absent in "]);
    fs::copy(
        project.path("dist/bin/benches/checks/speed"),
        project.path("dist/bin/benches/checks/other"),
    )
    .expect("writable");
    let refused = run(&project, &["criterion"], &[]);
    assert_refused(&refused, &["say which benchmark: checks/other, checks/speed"]);
}
