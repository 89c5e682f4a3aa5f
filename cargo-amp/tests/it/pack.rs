//! Tests what `cargo amp pack` builds, packs and refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::crates::{files, names};
use crate::packing::{build, pack, workspace};
use crate::support::{assert_refused, assert_succeeded, output, stderr, stdout};

#[test]
fn everything_that_a_gpu_machine_needs_is_packed() {
    let project = workspace();
    let run = output(&mut pack(&project, &[]));
    assert_succeeded(&run);
    let dist = project.path("dist");
    for part in ["packed ", "/dist (0.0 MiB)", "./run.sh verify --device cuda", "./run.sh test"] {
        assert!(stdout(&run).contains(part), "`{part}` is missing: {}", stdout(&run));
    }
    let packed = files(&dist);
    assert_eq!(
        packed.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            "bin/amp",
            "bin/benches/checks/speed",
            "bin/packages",
            "bin/tests/checks/checks",
            "bin/tests/checks/checks-lib",
            "bin/tests/mine/golden",
            "bin/tests/mine/mine-lib",
            "checks/inputs.csv",
            "checks/tests/goldens/other_cpu.snap",
            "data/deep/points.csv",
            "margins.json",
            "notes/words.txt",
            "run.sh",
            "tests/goldens/net_cpu.snap"
        ]
    );
    assert_eq!(packed["data/deep/points.csv"], "1,2\n");
    assert_eq!(packed["checks/tests/goldens/other_cpu.snap"], "golden of checks\n");
    assert_eq!(packed["bin/packages"], "mine \nchecks checks\n");
    assert!(packed["bin/tests/checks/checks"].contains("test checks"));
    assert!(packed["bin/tests/checks/checks-lib"].contains("lib checks"));
    for name in ["run.sh", "bin/amp", "bin/tests/mine/golden"] {
        let mode = fs::metadata(dist.join(name)).expect("packed").permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{name}");
    }
    assert!(!project.path("dist.partial").exists() && !project.path("dist.replaced").exists());
    let log = fs::read_to_string(project.path("built/log")).expect("cargo was called");
    let json = "--message-format=json-render-diagnostics";
    assert_eq!(
        log,
        format!(
            "build --package mine --bin amp --release {json}\n\
             test --no-run --workspace {json}\n\
             build --workspace --bench speed {json}\n"
        )
    );
}

#[test]
fn bin_only_builds_and_packs_no_tests() {
    let project = workspace();
    let run = output(&mut pack(&project, &["--bin-only", "--output", "out/small"]));
    assert_succeeded(&run);
    assert!(stdout(&run).contains("/out/small ("), "{}", stdout(&run));
    assert!(!stdout(&run).contains("run.sh test"), "{}", stdout(&run));
    let packed = files(&project.path("out/small"));
    let expected = [
        "bin/amp",
        "bin/packages",
        "checks/inputs.csv",
        "data/deep/points.csv",
        "margins.json",
        "notes/words.txt",
        "run.sh",
    ];
    assert!(packed.keys().eq(expected.iter()), "{:?}", packed.keys());
    let log = fs::read_to_string(project.path("built/log")).expect("cargo was called");
    assert_eq!(log.lines().count(), 1, "{log}");
    assert_eq!(names(&project.path("out")), ["small"]);
}

#[test]
fn only_a_packed_folder_is_replaced() {
    let project = workspace();
    assert_succeeded(&output(&mut pack(&project, &[])));
    project.write("dist/stale", "of the last time");
    project.write("dist.partial/stale", "of an interruption");
    project.write("dist.replaced/stale", "of an interruption");
    assert_succeeded(&output(&mut pack(&project, &["--bin-only"])));
    let packed = names(&project.path("dist"));
    assert_eq!(packed, ["bin", "checks", "data", "margins.json", "notes", "run.sh"]);
    assert!(!project.path("dist.partial").exists() && !project.path("dist.replaced").exists());

    fs::create_dir(project.path("empty")).expect("writable");
    assert_succeeded(&output(&mut pack(&project, &["--bin-only", "--output", "empty"])));
    let before = files(&project.path("data"));
    for output_folder in ["data", ".", "margins.json"] {
        let run = output(&mut pack(&project, &["--output", output_folder]));
        assert_refused(&run, &["exists and is not a packed folder", "--output"]);
    }
    assert_refused(&output(&mut pack(&project, &["--output", "/"])), &["/ has no name"]);
    assert_eq!(files(&project.path("data")), before);
}

#[test]
fn paths_that_cannot_be_packed_are_refused_before_the_build() {
    let project = workspace();
    let manifest = fs::read_to_string(project.path("Cargo.toml")).expect("written");
    for (path, why) in [
        ("absent", "which is not in "),
        ("../mine", "which is not a path in the package's folder"),
        ("/etc", "which is not a path in the package's folder"),
        ("", "which is not a path in the package's folder"),
        ("bin/tool", "which the packed folder uses itself"),
        ("run.sh", "which the packed folder uses itself"),
    ] {
        let manifest = manifest.replace("\"data\"", &format!("\"{path}\""));
        project.write("Cargo.toml", &manifest);
        let run = output(&mut pack(&project, &[]));
        assert_refused(
            &run,
            &[&format!("`pack` in [package.metadata.amp] of `mine` names `{path}`, {why}")],
        );
    }
    project.write("Cargo.toml", &manifest);
    let run = output(pack(&project, &[]).env("PATH", project.path("data")));
    assert_refused(&run, &["strip cannot be run", "binutils"]);
    assert!(!project.path("built/log").exists() && !project.path("dist").exists());
    assert!(project.is_bare());
}

#[test]
fn a_failure_leaves_the_old_folder() {
    let project = workspace();
    assert_succeeded(&output(&mut pack(&project, &["--bin-only"])));
    let before = files(&project.path("dist"));
    let unchanged = |what: &str| {
        assert_eq!(files(&project.path("dist")), before, "{what}");
        assert!(!project.path("dist.partial").exists(), "{what}");
    };

    let run = output(pack(&project, &[]).env("FAKE_STRIP", "broken"));
    assert_refused(&run, &["strip could not copy ", "built/amp-bin-amp", "exit status: 1"]);
    unchanged("strip");

    // If cargo fails, cargo has printed the reason, and cargo-amp only returns cargo's exit code.
    for file in ["benches", "tests", "amp"] {
        fs::remove_file(project.path("built").join(file)).expect("written");
        let run = output(&mut pack(&project, &[]));
        assert_eq!(run.status.code(), Some(1), "{file}: {}", stderr(&run));
        unchanged(file);
    }
}

#[test]
fn a_test_to_leave_out_must_exist() {
    let project = workspace();
    build(&project, "tests", &[("checks", "test", "uii", true), ("checks", "lib", "checks", true)]);
    let run = output(&mut pack(&project, &[]));
    assert_refused(
        &run,
        &["pack-skip-tests of `checks` names `ui`", "its test binaries are uii, checks"],
    );
    assert!(!project.path("dist").exists());
}
