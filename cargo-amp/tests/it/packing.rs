//! Helpers for the tests of `cargo amp pack` and of the packed `run.sh`: a workspace of two
//! packages, and the files that a build would create.

use std::process::Command;

use crate::support::Checkout;

/// Creates a workspace of two packages. The package `mine` has the amp binary, data and golden
/// files. The package `checks` has golden files only.
pub(crate) fn workspace() -> Checkout {
    let project = Checkout::new();
    let package = |name: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n")
    };
    project.write(
        "Cargo.toml",
        &(package("mine")
            + "[package.metadata.amp]\npack = [\"data\", \"notes/words.txt\"]\n\
               [workspace]\nmembers = [\"checks\"]\n"),
    );
    project.write("src/lib.rs", "");
    project.write("data/deep/points.csv", "1,2\n");
    project.write("notes/words.txt", "words\n");
    project.write("notes/private.txt", "not packed\n");
    project.write("margins.json", "{}\n");
    project.write("tests/golden.rs", "");
    project.write("tests/goldens/net_cpu.snap", "golden of mine\n");
    let skips = "[package.metadata.amp]\npack-skip-tests = [\"ui\"]\npack = [\"inputs.csv\"]\n[[bench]]\nname = \"speed\"\n\
                 [[bench]]\nname = \"odd\"\nrequired-features = [\"odd\"]\n[features]\nodd = []\n";
    project.write("checks/Cargo.toml", &(package("checks") + skips));
    project.write("checks/src/lib.rs", "");
    project.write("checks/inputs.csv", "3,4\n");
    project.write("checks/margins.json", "not of the amp binary\n");
    project.write("checks/benches/speed.rs", "");
    project.write("checks/benches/odd.rs", "");
    project.write("checks/tests/goldens/other_cpu.snap", "golden of checks\n");
    // In the package `checks`, the library and one test have the same name.
    build(&project, "amp", &[("", "bin", "amp", false)]);
    build(
        &project,
        "tests",
        &[
            ("", "bin", "amp", false),
            ("", "bin", "amp", true),
            ("", "proc-macro", "macros", true),
            ("", "lib", "mine", true),
            ("", "test", "golden", true),
            ("checks", "lib", "checks", true),
            ("checks", "test", "checks", true),
            ("checks", "test", "ui", true),
        ],
    );
    build(&project, "benches", &[("checks", "bench", "speed", true)]);
    project
}

/// Writes the file `built/<file>` with the messages that cargo prints after it has built `targets`,
/// and the executables in these messages. A target consists of its package's folder, its kind, its
/// name, and whether it is a test binary. The executables are shell scripts that print their
/// arguments and fail if the variable `FAILS` is their name.
pub(crate) fn build(project: &Checkout, file: &str, targets: &[(&str, &str, &str, bool)]) {
    let mut messages = String::new();
    for (package, kind, name, is_test) in targets {
        let path = format!("built/{file}-{kind}-{name}");
        project.write(
            &path,
            &format!(
                "#!/bin/sh\necho \"{kind} {name} $*\"\n\
                 for name in AMP_PROJECT AMP_BINARY AMP_GOLDENS AMP_DEVICE AMP_ANCHORS \\\n\
                     INSTA_UPDATE INSTA_WORKSPACE_ROOT RUST_TEST_THREADS CUBLAS_WORKSPACE_CONFIG \\\n\
                     LD_LIBRARY_PATH CI PWD; do\n    eval echo \"$name=\\${{$name-unset}}\"\ndone\n\
                 [ \"$FAILS\" != {name} ]\n"
            ),
        );
        make_executable(&project.path(&path));
        let message = serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": project.path(package).join("Cargo.toml"),
            "target": { "kind": [kind], "name": name },
            "profile": { "test": is_test },
            "executable": project.path(&path),
        });
        messages.push_str(&format!("{message}\n"));
    }
    project.write(&format!("built/{file}"), &messages);
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;

    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("writable");
}

/// Creates a command for `cargo amp pack` with the replacements for cargo and strip.
pub(crate) fn pack(project: &Checkout, arguments: &[&str]) -> Command {
    let mut command = project.cargo_amp(&[&["pack"], arguments].concat());
    command.env("FAKE_BUILT", project.path("built"));
    command
}
