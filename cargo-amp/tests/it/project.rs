//! Tests which crate and which binary a command uses.

use crate::support::{Checkout, assert_refused, output};

/// Creates a package in a folder that has the package's name. If `binary` is given, the package has
/// a binary of this name.
fn package(project: &Checkout, name: &str, binary: Option<&str>) {
    let manifest =
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
    project.write(&format!("{name}/Cargo.toml"), &manifest);
    project.write(&format!("{name}/src/lib.rs"), "");
    if let Some(binary) = binary {
        project.write(&format!("{name}/src/bin/{binary}.rs"), "fn main() {}\n");
    }
}

/// Creates a workspace of these packages. The root of the workspace is not a package.
fn workspace(packages: &[(&str, Option<&str>)]) -> Checkout {
    let project = Checkout::new();
    std::fs::remove_dir_all(project.path("src")).expect("there");
    let names: Vec<_> = packages.iter().map(|(name, _)| *name).collect();
    project.write("Cargo.toml", &format!("[workspace]\nresolver = \"3\"\nmembers = {names:?}\n"));
    for (name, binary) in packages {
        self::package(&project, name, *binary);
    }
    project
}

/// Returns the package whose binary is built when cargo-amp runs in `folder` with `arguments`.
#[track_caller]
fn built(project: &Checkout, folder: &str, arguments: &[&str]) -> String {
    project.write("built/amp", "");
    let mut command = project.cargo_amp(arguments);
    command.current_dir(project.path(folder)).env("FAKE_BUILT", project.path("built"));
    // The script that replaces cargo builds nothing, so cargo-amp fails after the build.
    assert_refused(&output(&mut command), &["cargo built amp but did not say where"]);
    let log = std::fs::read_to_string(project.path("built/log")).expect("cargo was called");
    std::fs::remove_file(project.path("built/log")).expect("just read");
    let line = log.lines().last().expect("a line");
    line.split(' ').skip_while(|word| *word != "--package").nth(1).expect("a name").to_owned()
}

#[test]
fn the_binary_is_the_named_the_current_or_the_only_packages() {
    let project = workspace(&[("one", Some("amp")), ("two", None), ("three", Some("other"))]);
    for folder in ["", "one", "one/src/bin", "two", "three/src"] {
        assert_eq!(built(&project, folder, &["verify"]), "one", "in `{folder}`");
    }

    let project = workspace(&[("one", Some("amp")), ("two", Some("amp")), ("three", None)]);
    assert_eq!(built(&project, "one", &["verify"]), "one");
    assert_eq!(built(&project, "two/src", &["amp", "verify"]), "two");
    assert_eq!(built(&project, "two", &["--package", "one", "verify"]), "one");
    assert_eq!(built(&project, "", &["amp", "--package=two", "verify"]), "two");
    assert_eq!(built(&project, "three", &["-p", "two", "verify"]), "two");
    for folder in ["", "three"] {
        let run = output(project.cargo_amp(&["verify"]).current_dir(project.path(folder)));
        assert_refused(&run, &["`one`, `two` each have a binary `amp`", "--package NAME"]);
    }
    assert!(project.is_provisioned());
}

#[test]
fn a_package_inside_anothers_folder_is_current_there() {
    let project = Checkout::new();
    package(&project, "inner", Some("amp"));
    let manifest = std::fs::read_to_string(project.path("Cargo.toml")).expect("written");
    project.write(
        "Cargo.toml",
        &manifest.replace("[workspace]", "[workspace]\nmembers = [\"inner\"]"),
    );
    assert_eq!(built(&project, "", &["verify"]), "mine");
    assert_eq!(built(&project, "src", &["verify"]), "mine");
    assert_eq!(built(&project, "inner/src", &["verify"]), "inner");
}

#[test]
fn only_commands_that_measure_time_use_the_release_profile() {
    let project = Checkout::new();
    project.write("built/amp", "");
    for command in ["verify", "bench"] {
        output(project.cargo_amp(&[command]).env("FAKE_BUILT", project.path("built")));
    }
    let log = std::fs::read_to_string(project.path("built/log")).expect("cargo was called");
    let release: Vec<_> = log.lines().map(|line| line.contains(" --release ")).collect();
    assert_eq!(release, [false, true], "{log}");
}

#[test]
fn without_the_binary_init_is_suggested_before_the_fetch() {
    let project = workspace(&[("one", None), ("two", Some("other"))]);
    // A test named `amp` is not the binary.
    project.write("one/tests/amp.rs", "");
    for (folder, arguments, parts) in [
        ("", &["verify"][..], ["no package of ", "has a binary `amp`"]),
        ("one", &["verify"], ["`one` has no binary `amp`", "/one"]),
        ("two/src", &["gate"], ["`two` has no binary `amp`", "/two"]),
        ("", &["-p", "two", "verify"], ["`two` has no binary `amp`", "/two"]),
        ("one", &["pack"], ["`one` has no binary `amp`", "/one"]),
    ] {
        let run = output(project.cargo_amp(arguments).current_dir(project.path(folder)));
        assert_refused(&run, &parts);
        assert_refused(&run, &["run `cargo amp init`"]);
    }
    assert!(project.is_bare());
    // `cargo amp test` still runs the tests of a workspace without an `amp` binary.
    assert_eq!(output(&mut project.cargo_amp(&["test"])).status.code(), Some(7));
}

#[test]
fn outside_a_crate_the_error_suggests_new() {
    let project = Checkout::new();
    for command in ["setup", "verify", "test", "pack", "init"] {
        let run = output(project.cargo_amp(&[command]).current_dir("/"));
        assert_refused(&run, &["/ is not inside a crate", "cargo amp new NAME"]);
    }
}

#[test]
fn a_manifest_that_cargo_cannot_read_is_one_line() {
    let project = Checkout::new();
    for (manifest, part) in [
        ("[package]\nname = 3\n", "invalid type: integer `3`"),
        ("[package\n", "cargo cannot read the crate here"),
        ("[package]\nname = \"mine\"\n[workspace]\nmembers = [\"absent\"]\n", "absent/Cargo.toml"),
    ] {
        project.write("Cargo.toml", manifest);
        let run = output(&mut project.cargo_amp(&["verify"]));
        assert_refused(&run, &["cargo cannot read the crate here: ", part]);
    }
    assert!(project.is_bare());
}

#[test]
fn a_missing_cargo_is_one_line() {
    let project = Checkout::new();
    let run = output(project.cargo_amp(&["verify"]).env("CARGO", project.path("absent")));
    assert_refused(&run, &["cargo could not be run", "put it on PATH"]);
}

#[test]
fn unknown_settings_are_refused() {
    let project = Checkout::new();
    let manifest = std::fs::read_to_string(project.path("Cargo.toml")).expect("written");
    for (settings, parts) in [
        (
            "[package.metadata.amp]\npack-skip-test = [\"ui\"]",
            ["[package.metadata.amp] of `mine`", "unknown key `pack-skip-test`: use pack or"],
        ),
        ("[package.metadata.amp]\npack = \"data\"", ["`pack` in ", "must be a list of strings"]),
        ("[package.metadata.amp]\npack = [3]", ["`pack` in ", "must be a list of strings"]),
        ("[package.metadata]\namp = true", ["[package.metadata.amp]", "must be a table"]),
        (
            "[workspace.metadata.amp]\npack = [\"data\"]",
            ["[workspace.metadata.amp]", "unknown key `pack`: use test-python-packages"],
        ),
        (
            "[workspace.metadata.amp]\ntest-python-packages = { numpy = \"2\" }",
            ["`test-python-packages` in [workspace.metadata.amp]", "must be a list of strings"],
        ),
    ] {
        project.write("Cargo.toml", &format!("{manifest}{settings}\n"));
        assert_refused(&output(&mut project.cargo_amp(&["test"])), &parts);
    }
    assert!(project.is_bare());
}
