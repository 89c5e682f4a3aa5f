//! `cargo amp init` adds missing files to a crate and changes nothing else.

use std::fs;
use std::process::Output;

use crate::crates::{amp_source, assert_formatted, files, metadata};
use crate::support::{Checkout, assert_refused, assert_succeeded, output, stdout};

/// Creates the crate `here/own`, which has a library, and a folder that looks like a checkout of
/// this repository.
fn own_crate() -> (Checkout, String) {
    let project = Checkout::new();
    let source = amp_source(&project);
    let manifest = "[package]\nname = \"own\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
                    [dependencies]\n# Of mine.\n\n[workspace]\n\n[profile.dev]\nopt-level = 1\n";
    project.write("here/own/Cargo.toml", manifest);
    project.write("here/own/src/lib.rs", "// mine\n");
    (project, source)
}

fn init(project: &Checkout, folder: &str, arguments: &[&str]) -> Output {
    let mut command = project.cargo_amp(&[&["amp", "init"], arguments].concat());
    output(command.current_dir(project.path(folder)))
}

#[test]
fn missing_files_are_added_and_a_second_run_changes_nothing() {
    let (project, source) = own_crate();
    let folder = project.path("here/own");
    let run = init(&project, "here/own/src", &["--amp-source", &source]);
    assert_succeeded(&run);
    assert_eq!(
        stdout(&run),
        "extended  Cargo.toml: the dependencies amp-core, amp-verify\n\
         added     src/bin/amp.rs\n\
         added     .cargo/config.toml\n\
         added     .gitignore: /target, /.libtorch, .amp, /dist\n\
         added     .github/workflows/amp.yml\n\
         next: register your models in src/bin/amp.rs, each with a margin; `cargo amp gate` then judges them\n"
    );
    let made = files(&folder);
    assert_eq!(made["src/lib.rs"], "// mine\n");
    assert!(made["Cargo.toml"].contains("# Of mine."), "{}", made["Cargo.toml"]);
    assert!(made["src/bin/amp.rs"].contains("own::data"), "{}", made["src/bin/amp.rs"]);
    // In addition to the listed files, cargo has created Cargo.lock.
    assert_eq!(made.len(), 7, "{:?}", made.keys());
    let found = metadata(&folder);
    let dependencies = found["packages"][0]["dependencies"].as_array().expect("a list");
    let paths: Vec<_> = dependencies.iter().map(|d| d["path"].as_str().expect("a path")).collect();
    assert_eq!(paths, [format!("{source}/amp-core"), format!("{source}/amp-verify")]);
    assert_formatted(&project, &folder);

    // Nothing is missing, so the source of amp-core is not needed.
    let again = init(&project, "here/own", &[]);
    assert_succeeded(&again);
    let unchanged = [
        "Cargo.toml",
        "src/bin/amp.rs",
        ".cargo/config.toml",
        ".gitignore",
        ".github/workflows/amp.yml",
    ]
    .map(|name| format!("unchanged {name}\n"));
    assert_eq!(stdout(&again), unchanged.concat());
    assert_eq!(files(&folder), made);
}

#[test]
fn existing_files_are_kept_and_the_users_part_is_printed() {
    let (project, source) = own_crate();
    let folder = project.path("here/own");
    for (name, text) in [
        (".cargo/config.toml", "# LIBTORCH .libtorch/torch -rpath\n[build]\njobs = 2\n"),
        (".gitignore", "target/\n*.log"),
        (".github/workflows/amp.yml", "name: mine\n"),
    ] {
        project.write(&format!("here/own/{name}"), text);
    }
    let before = files(&folder);
    let run = init(&project, "here/own", &["--amp-source", &source]);
    assert_refused(&run, &["your .cargo/config.toml does not say", "add the lines above"]);
    assert!(stdout(&run).contains("unchanged .cargo/config.toml\n"), "{}", stdout(&run));
    assert!(stdout(&run).contains("unchanged .github/workflows/amp.yml\n"), "{}", stdout(&run));
    assert!(stdout(&run).contains("extended  .gitignore: /.libtorch, .amp, /dist\n"));
    let lines = stdout(&run);
    let (_, lines) = lines.split_once("add these lines to .cargo/config.toml:\n\n").expect("said");
    let mut after = files(&folder);
    assert_eq!(after[".gitignore"], "target/\n*.log\n/.libtorch\n.amp\n/dist\n");
    for name in [".cargo/config.toml", ".github/workflows/amp.yml", "src/lib.rs"] {
        assert_eq!(after[name], before[name], "{name}");
    }

    // A second run fails in the same way and changes nothing. After the printed lines were added to
    // `.cargo/config.toml`, the next run succeeds.
    let again = init(&project, "here/own", &[]);
    assert_refused(&again, &["add the lines above"]);
    assert_eq!(files(&folder), after);
    let extended = format!("{}{lines}", before[".cargo/config.toml"]);
    project.write("here/own/.cargo/config.toml", &extended);
    assert_succeeded(&init(&project, "here/own", &[]));
    after.insert(".cargo/config.toml".into(), extended);
    assert_eq!(files(&folder), after);
}

#[test]
fn a_configuration_with_the_old_name_is_the_one_that_is_read() {
    let (project, source) = own_crate();
    project.write("here/own/.cargo/config", "[build]\njobs = 2\n");
    let run = init(&project, "here/own", &["--amp-source", &source]);
    assert_refused(&run, &["add the lines above"]);
    assert!(!project.path("here/own/.cargo/config.toml").exists());
}

#[test]
fn in_a_workspace_the_package_is_extended_and_the_root_configured() {
    let (project, source) = own_crate();
    project
        .write("here/own/Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"a\", \"b\"]\n");
    for name in ["a", "b"] {
        let manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
        project.write(&format!("here/own/{name}/Cargo.toml"), &manifest);
        project.write(&format!("here/own/{name}/src/main.rs"), "fn main() {}\n");
    }
    let root = project.path("here/own");
    let before = files(&root);
    let run = init(&project, "here/own", &["--amp-source", &source]);
    assert_refused(&run, &["the packages `a`, `b`", "cargo amp --package NAME init"]);
    assert_eq!(files(&root), before);

    let run = init(&project, "here/own", &["--package", "a", "--amp-source", &source]);
    assert_succeeded(&run);
    for part in ["src/lib.rs", "default-run = \"a\"", "opt-level = 1"] {
        assert!(stdout(&run).contains(part), "`{part}` is missing: {}", stdout(&run));
    }
    let after = files(&root);
    let added: Vec<_> = after.keys().filter(|name| !before.contains_key(*name)).collect();
    let root_files =
        [".cargo/config.toml", ".github/workflows/amp.yml", ".gitignore", "Cargo.lock"];
    assert_eq!(added, [&root_files[..], &["a/src/bin/amp.rs"]].concat());
    assert_eq!(after["b/Cargo.toml"], before["b/Cargo.toml"]);
    assert_eq!(after["Cargo.toml"], before["Cargo.toml"]);

    // Without `--package`, the package of the working directory is extended.
    let run = init(&project, "here/own/b/src", &["--amp-source", &source]);
    assert_succeeded(&run);
    assert!(project.path("here/own/b/src/bin/amp.rs").is_file());
}

#[test]
fn a_dev_dependency_is_not_enough_for_the_binary() {
    let (project, source) = own_crate();
    let manifest = fs::read_to_string(project.path("here/own/Cargo.toml")).expect("written");
    let of_tests = format!("[dev-dependencies]\namp-core = {{ path = \"{source}/amp-core\" }}\n");
    project.write("here/own/Cargo.toml", &(manifest + &of_tests));
    assert_succeeded(&init(&project, "here/own", &["--amp-source", &source]));
    let found = metadata(&project.path("here/own"));
    let dependencies = found["packages"][0]["dependencies"].as_array().expect("a list");
    let of_binary = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
    assert_eq!(of_binary.count(), 2);
}

#[test]
fn a_binary_that_cargo_would_not_find_is_reported() {
    let (project, source) = own_crate();
    let manifest = fs::read_to_string(project.path("here/own/Cargo.toml")).expect("written");
    let manifest = manifest.replace("[package]\n", "[package]\nautobins = false\n");
    project.write("here/own/Cargo.toml", &manifest);
    let run = init(&project, "here/own", &["--amp-source", &source]);
    assert_refused(&run, &["`[[bin]]`", "`name = \"amp\"`", "own/Cargo.toml"]);
}

#[test]
fn a_failure_changes_nothing() {
    let (project, source) = own_crate();
    let folder = project.path("here/own");
    let before = files(&folder);
    let refused = |arguments: &[&str], parts: &[&str]| {
        assert_refused(&init(&project, "here/own", arguments), parts);
        assert_eq!(files(&folder), before, "{arguments:?}");
    };
    refused(&[], &["where amp-core comes from is not known", "--amp-source"]);
    refused(&["--amp-source", "nowhere"], &["nowhere cannot be read", "a checkout"]);
    // The first of the two dependencies can be added, the second cannot.
    project.write("source/amp-verify/Cargo.toml", "[package]\n");
    let parts = ["cargo cannot add amp-verify to Cargo.toml: ", "nothing was changed"];
    refused(&["--amp-source", &source], &parts);
    assert_eq!(amp_source(&project), source);

    // A file at the path of the folder `.github` makes `init` fail after it has written other
    // files.
    project.write("here/own/.github", "a file\n");
    let before = files(&folder);
    let run = init(&project, "here/own", &["--amp-source", &source]);
    assert_refused(&run, &[".github/workflows/amp.yml cannot be written"]);
    assert_eq!(files(&folder), before);
    assert!(!project.path("here/own/.cargo").exists());
    assert!(!project.path("here/own/src/bin").exists());
}
