//! `cargo amp new`: the files of the new crate, and the requests that are refused.

use std::fs;
use std::process::{Command, Output};

use crate::crates::{amp_source, assert_formatted, files, metadata, names};
use crate::support::{Checkout, assert_refused, assert_succeeded, output, stdout};

/// Runs `cargo amp new` in the empty folder `here`.
fn new(project: &Checkout, arguments: &[&str]) -> Output {
    output(&mut command(project, arguments))
}

fn command(project: &Checkout, arguments: &[&str]) -> Command {
    let mut command = project.cargo_amp(&[&["amp", "new"], arguments].concat());
    fs::create_dir_all(project.path("here")).expect("writable");
    command.current_dir(project.path("here"));
    command
}

#[test]
fn the_new_crate_is_valid_for_cargo_and_formatted() {
    let project = Checkout::new();
    let source = amp_source(&project);
    let run = new(&project, &["spiral-model", "--amp-source", &source]);
    assert_succeeded(&run);
    for part in ["made the crate spiral-model", "cd spiral-model", "cargo amp verify", &source] {
        assert!(stdout(&run).contains(part), "`{part}` is missing: {}", stdout(&run));
    }
    let folder = project.path("here/spiral-model");
    assert_eq!(names(&project.path("here")), ["spiral-model"]);
    let files = files(&folder);
    assert_eq!(
        files.keys().map(String::as_str).collect::<Vec<_>>(),
        [
            ".cargo/config.toml",
            ".github/workflows/amp.yml",
            ".gitignore",
            "Cargo.toml",
            "README.md",
            "src/bin/amp.rs",
            "src/data.rs",
            "src/lib.rs",
            "tests/golden.rs"
        ]
    );
    for (name, text) in &files {
        for template in ["my-model", "my_model", "AMP_CORE", "AMP_VERIFY", "INSTALL"] {
            assert!(!text.contains(template), "{name} has `{template}`:\n{text}");
        }
        assert!(text.ends_with('\n'), "{name}");
    }
    assert!(files["src/bin/amp.rs"].contains("amp_verify::main(spiral_model::registry())"));
    let install = format!("cargo install --path {source}/cargo-amp\n");
    assert!(files[".github/workflows/amp.yml"].contains(&install));

    // Runs cargo in the new crate's folder, because cargo reads its configuration from the working
    // directory upwards.
    let found = metadata(&folder);
    let package = &found["packages"][0];
    assert_eq!(package["name"], "spiral-model");
    assert_eq!(package["edition"], "2024");
    assert_eq!(found["workspace_root"], folder.display().to_string());
    let dependency = |name: &str| {
        let dependencies = package["dependencies"].as_array().expect("a list");
        dependencies.iter().find(|d| d["name"] == name).expect("a dependency").clone()
    };
    for name in ["amp-core", "amp-verify"] {
        assert_eq!(dependency(name)["path"], format!("{source}/{name}"));
    }
    // The crate has no dev-dependencies. A dev-dependency could enable features of other
    // dependencies, and `cargo test` could then not reuse what `cargo build` has built.
    let dependencies = package["dependencies"].as_array().expect("a list");
    assert!(dependencies.iter().all(|dependency| dependency["kind"].is_null()));
    let targets = package["targets"].as_array().expect("a list");
    let targets: Vec<_> = targets.iter().map(|t| (&t["kind"][0], &t["name"])).collect();
    let expected = [("lib", "spiral_model"), ("bin", "amp"), ("test", "golden")];
    assert!(expected.iter().all(|(kind, name)| targets.iter().any(|t| t.0 == kind && t.1 == name)));
    assert_eq!(targets.len(), 3, "{targets:?}");
    assert_formatted(&project, &folder);

    // The first call has created the folder, so a second call with the same arguments is refused.
    let again = new(&project, &["spiral-model", "--amp-source", &source]);
    assert_refused(&again, &["here/spiral-model exists already", "cargo amp init"]);
    assert_eq!(self::files(&folder), files);
}

#[test]
fn a_crate_with_a_long_name_is_formatted() {
    let project = Checkout::new();
    let name = "a-model-with-a-name-as-long-as-they-come";
    assert_succeeded(&new(&project, &[name, "--amp-source", "0.1"]));
    assert_formatted(&project, &project.path("here").join(name));
}

#[test]
fn the_source_may_be_a_version_or_a_git_repository() {
    let project = Checkout::new();
    let manifest = |name: &str| {
        fs::read_to_string(project.path("here").join(name).join("Cargo.toml")).expect("a manifest")
    };
    assert_succeeded(&new(&project, &["one", "--amp-source", "0.1.0"]));
    assert!(manifest("one").contains("\namp-core = \"0.1.0\"\namp-verify = \"0.1.0\"\n"));
    assert_succeeded(&new(&project, &["--amp-source=https://host/repo#0123abc", "two"]));
    let git = "{ git = \"https://host/repo\", rev = \"0123abc\" }\n";
    assert!(manifest("two").contains(&format!("\namp-core = {git}amp-verify = {git}")));
}

#[test]
fn the_default_source_is_the_source_of_cargo_amp() {
    let project = Checkout::new();
    let source = amp_source(&project);
    project.write("root/bin/note", "");
    let installed = project.path("root/bin/cargo-amp");
    fs::hard_link(env!("CARGO_BIN_EXE_cargo-amp"), &installed).expect("the same file system");
    let record = |from: &str| {
        let text = format!(
            r#"{{"installs":{{"other 1.0.0 (path+file:///x)":{{"bins":["other"]}},"cargo-amp 0.1.0 ({from})":{{"bins":["cargo-amp"]}}}}}}"#
        );
        project.write("root/.crates2.json", &text);
    };
    let installed_new = |name: &str| {
        let as_set = command(&project, &[name]);
        let mut command = Command::new(&installed);
        command.args(as_set.get_args()).env_clear();
        command.envs(as_set.get_envs().filter_map(|(key, value)| Some((key, value?))));
        output(command.current_dir(project.path("here")))
    };
    let manifest = |name: &str| {
        fs::read_to_string(project.path("here").join(name).join("Cargo.toml")).expect("a manifest")
    };

    record(&format!("path+file://{source}/cargo-amp"));
    assert_succeeded(&installed_new("one"));
    assert!(manifest("one").contains(&format!("amp-core = {{ path = \"{source}/amp-core\" }}")));
    record("git+https://host/repo?branch=main#0123abc");
    assert_succeeded(&installed_new("two"));
    assert!(manifest("two").contains("{ git = \"https://host/repo\", rev = \"0123abc\" }"));
    record("registry+https://github.com/rust-lang/crates.io-index");
    assert_succeeded(&installed_new("three"));
    assert!(manifest("three").contains(&format!("amp-core = {:?}", env!("CARGO_PKG_VERSION"))));

    record("registry+https://elsewhere/index");
    assert_refused(&installed_new("four"), &["https://elsewhere/index", "pass --amp-source"]);
    record("path+file:///nowhere/cargo-amp");
    assert_refused(&installed_new("four"), &["/nowhere", "point --amp-source at a checkout"]);
    project.write("root/.crates2.json", "not JSON");
    assert_refused(&installed_new("four"), &["was not installed", "pass --amp-source"]);
    assert_eq!(names(&project.path("here")), ["one", "three", "two"]);
}

#[test]
fn under_cargo_run_the_source_is_the_checkout() {
    let project = Checkout::new();
    let source = amp_source(&project);
    let run = |package: &str| {
        let mut command = command(&project, &["one"]);
        command.env("CARGO_PKG_NAME", package);
        command.env("CARGO_MANIFEST_DIR", format!("{source}/cargo-amp"));
        output(&mut command)
    };
    // For programs started by `cargo run`, cargo sets `CARGO_MANIFEST_DIR` to the folder of the
    // package that is run. cargo-amp ignores the variable if this package is not cargo-amp.
    assert_refused(&run("other"), &["pass --amp-source"]);
    assert_succeeded(&run("cargo-amp"));
    let manifest = fs::read_to_string(project.path("here/one/Cargo.toml")).expect("a manifest");
    assert!(manifest.contains(&format!("amp-core = {{ path = \"{source}/amp-core\" }}")));
}

#[test]
fn a_refused_crate_gives_one_line_and_leaves_no_files() {
    let project = Checkout::new();
    project.write("half/amp-core/Cargo.toml", "");
    let half = project.path("half").display().to_string();
    let cases: [(&[&str], &[&str]); 13] = [
        (&["fn"], &["`fn`", "Rust keyword", "cargo amp new NAME"]),
        (&["1st"], &["cannot start with a digit", "cargo amp new NAME"]),
        (&["a b"], &["invalid character", "cargo amp new NAME"]),
        (&["../up"], &["invalid character", "cargo amp new NAME"]),
        (&["amp_core"], &["`amp_core` is a dependency of the new crate", "another name"]),
        (&["core"], &["`core` is a crate of the Rust distribution", "another name"]),
        (&["std"], &["`std` is a crate of the Rust distribution", "another name"]),
        (&["proc_macro"], &["`proc_macro` is a crate of the Rust distribution", "another name"]),
        (&["amp"], &["`amp` is the name of the crate's binary", "another name"]),
        (&["fine"], &["where amp-core comes from is not known", "--amp-source"]),
        (&["fine", "--amp-source", &half], &["half has no amp-verify/Cargo.toml", "a checkout"]),
        (&["fine", "--amp-source", "absent"], &["absent cannot be read", "a checkout"]),
        (&["fine", "--amp-source", "1.x.y"], &["version requirement `1.x.y`", "--amp-source"]),
    ];
    for (arguments, parts) in cases {
        assert_refused(&new(&project, arguments), parts);
        assert_eq!(names(&project.path("here")), Vec::<String>::new(), "{arguments:?}");
    }
}

#[test]
fn remains_of_an_interruption_are_removed() {
    let project = Checkout::new();
    project.write("here/.one.partial/src/stale.rs", "half a fi");
    assert_succeeded(&new(&project, &["one", "--amp-source", "0.1"]));
    assert_eq!(names(&project.path("here")), ["one"]);
    assert!(!project.path("here/one/src/stale.rs").exists());
}
